"""Opens the source of a dataset that `--data` names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flowers_torch.data.dataset import COLUMN_MARK, ImageDataset
from flowers_torch.data.sources.archives import SUFFIXES, archive_name, extract_to_cache, name_notes, staged_folder
from flowers_torch.data.sources.arrays import HDF5_SUFFIXES, cifar10, is_cifar10, read_hdf5
from flowers_torch.data.sources.demo import draw_demo
from flowers_torch.data.sources.flowers17 import flowers17, flowers17_folder, is_flowers17
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.hugging_face import PREFIX
from flowers_torch.data.sources.mnist import find_mnist, mnist, read_mnist
from flowers_torch.data.sources.shards import find_shards, read_shards
from flowers_torch.data.sources.table_text import OTHER_TABLES, SPREADSHEETS, spreadsheet
from flowers_torch.data.sources.tables import read_table
from flowers_torch.data.sources.test_split import val_as_test, with_test
from flowers_torch.errors import DataError, printable
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.system import expand_home

ACCEPTED = (
    "a folder of class folders or with train/val/test, a .tgz, .tar or .zip of one, a .csv of file,label, "
    "a folder or pattern of .tar shards, an .h5 of arrays, CIFAR-10's or MNIST's folder, hf:NAME, cifar10, mnist, "
    "flowers17, or demo"
)
CIFAR10_FOLDER = "cifar-10-batches-py"  # in cifar-10-python.tar.gz
DEMO_VERSION = 1  # to be raised when `draw_demo` draws something else


def open_dataset(
    source: str | Path,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    fewest: int = 2,
    classes: str = "",
    groups: str = "",
    test: str = "",
) -> ImageDataset:
    """Finds the images of any source.

    Args:
        source: See `ACCEPTED`. `./demo` names a folder called demo.
        cache: Folder for downloaded, unpacked and drawn datasets; `files.cache_folder()` if None.
        progress: Called with the bytes downloaded and the bytes in all.
        fewest: Minimum number of classes in a folder or table.
        classes: What names the classes of a folder: top, leaf, path or name; empty if the folders leave no doubt.
        groups: `column:NAME` for the column of a table that names the group of each image.
        test: Another source, whose images become the test split; `val` for those of the val split, if there is no test.

    Raises:
        DataError: unknown source, or nothing usable in it.
        ResourceError: no network or no space.
    """
    cache = Path(cache or cache_folder())
    dataset = _open(source, cache, progress, fewest, classes, groups)
    if test == "val":
        return val_as_test(dataset)
    return with_test(dataset, _open(test, cache, progress, 1, classes, "", "--test")) if test else dataset


def _open(
    source: str | Path,
    cache: Path,
    progress: Callable[[int, int], None] | None,
    fewest: int,
    classes: str,
    groups: str,
    flag: str = "--data",
) -> ImageDataset:
    column = groups.removeprefix(COLUMN_MARK) if groups.startswith(COLUMN_MARK) else ""
    is_table = str(source).lower().endswith((".csv", ".tsv"))
    if column and not is_table:
        what = f"--groups {printable(groups)} needs a table, but --data is {printable(source)}"
        raise DataError(what, "write a table file,group, and give its path")
    if str(source) == "demo":
        folder = cache / f"demo-v{DEMO_VERSION}"
        if not folder.is_dir():
            with staged_folder(folder) as staging:
                draw_demo(staging)
        return find_images(folder, "demo")
    if str(source) == "flowers17":
        return flowers17(cache=cache, progress=progress)
    if str(source) == "cifar10":
        return cifar10(cache)
    if str(source) == "mnist":
        return mnist(cache)
    if str(source).startswith(PREFIX):
        from flowers_torch.data.sources.python_data import hugging_face_table  # which imports torch

        return read_table(hugging_face_table(str(source).removeprefix(PREFIX), cache))
    path = expand_home(source)  # guard: K06
    if is_cifar10(path):
        return cifar10(cache, path.resolve())
    if files := find_mnist(path):
        return read_mnist(files, path.absolute().name, cache)
    if shards := find_shards(path):
        return read_shards(shards)
    if path.is_dir():
        return flowers17_folder(path) if is_flowers17(path) else find_images(path, None, fewest, classes)
    if is_table and path.exists():
        return read_table(path, column, fewest)
    if groups.startswith(COLUMN_MARK):
        raise DataError(
            f"--groups {printable(groups)} needs a table, not {printable(source)}", "name a file file,group"
        )
    if path.suffix.lower() in SPREADSHEETS | OTHER_TABLES and path.is_file():
        raise spreadsheet(path)
    if path.suffix.lower() in HDF5_SUFFIXES and path.is_file():
        return read_hdf5(path, cache)
    if path.name.lower().endswith(SUFFIXES) and path.exists():
        return _archive(path, cache, fewest, classes)
    what = "is not an archive or a table of a known kind" if path.exists() else "does not exist"
    raise DataError(f"{flag} {printable(source)} {what}", f"give {ACCEPTED}")


def _archive(path: Path, cache: Path, fewest: int, classes: str) -> ImageDataset:
    folder = extract_to_cache(path, cache)
    if is_flowers17(folder):
        return flowers17(path, cache)
    if is_cifar10(folder / CIFAR10_FOLDER):
        return cifar10(cache, folder / CIFAR10_FOLDER)
    dataset = find_images(folder, archive_name(path), fewest, classes)
    return replace(dataset, notes=(*name_notes(path), *dataset.notes))
