"""Oxford Flowers-17: 1360 photos, 80 of each of 17 British flowers (Nilsback and Zisserman, CVPR 2006).

The archive has no class folders: `jpg/image_0001.jpg` to `jpg/image_1360.jpg` are ordered by class.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.archives import extract_archive, extract_to_cache
from flowers_torch.data.sources.tree import list_folder
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.files.atomic import atomic_write
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import download, file_digest
from flowers_torch.files.reading import read_bytes, reading

URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz"
MD5 = "b59a65d8d1a99cd66944d474e1289eab"
SPLITS_NAME = "datasplits.mat"
SPLITS_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/datasplits.mat"
SPLITS_MD5 = "4828cddfd0d803c5abbdebcb1e148a1e"
SPLITS_BYTES = 1 << 17  # at most; SciPy unpacks a thousand times as many
OTHER_WAYS = "give --data FOLDER, --data path/to/17flowers.tgz, or --data demo"

IMAGES_PER_CLASS = 80
# In the order of the files. The original tutorial lists another order, which does not match the photos.
CLASSES = tuple(
    """daffodil snowdrop lily_valley bluebell crocus iris tigerlily tulip fritillary sunflower daisy
    colts_foot dandelion cowslip buttercup windflower pansy""".split()
)
PATHS = tuple(f"jpg/image_{number:04d}.jpg" for number in range(1, IMAGES_PER_CLASS * len(CLASSES) + 1))


def flowers17(
    archive: Path | None = None, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> ImageDataset:
    """Flowers-17, unpacked into the cache once, from a local archive with the same files or downloaded.

    `progress` is called with the bytes downloaded and the bytes in all.

    Raises:
        ResourceError: no network; the error names the alternatives.
        DataError: the archive is damaged or holds something else.
    """
    cache = Path(cache or cache_folder())
    if archive is None:
        folder = cache / "flowers17"
        if not folder.is_dir():
            extract_archive(download(URL, cache / "17flowers.tgz", MD5, "md5", OTHER_WAYS, progress), folder)
        return flowers17_folder(folder)
    folder, md5 = extract_to_cache(archive, cache), file_digest(archive, "md5")
    source = archive.parent / SPLITS_NAME  # `official_split` looks for it beside the images
    if source.is_file() and not (folder / SPLITS_NAME).exists():
        with atomic_write(folder / SPLITS_NAME) as file:
            file.write(source.read_bytes())
    note = f"{printable(archive)} is not Oxford's own file (md5 {md5}, theirs is {MD5})"
    return flowers17_folder(folder, () if md5 == MD5 else (note,))


def flowers17_folder(folder: Path, notes: tuple[str, ...] = ()) -> ImageDataset:
    """The dataset in an unpacked archive: `folder/jpg/image_0001.jpg` and so on, neither fewer nor more."""
    found = [f"jpg/{name}" for name in list_folder(folder / "jpg")[1] if name.endswith(".jpg")]
    missing, extra = sorted(set(PATHS) - set(found)), sorted(set(found) - set(PATHS))
    if missing or extra:
        first = printable((missing or extra)[0])
        counts = f"{len(missing)} of {len(PATHS)} photos missing, {len(extra)} others (first: {first})"
        what = f"{printable(folder)} is not Flowers-17: {counts}"
        raise DataError(what, "remove this folder and unpack the archive again")
    return whole_set(folder, notes)


def whole_set(folder: Path, notes: tuple[str, ...] = ()) -> ImageDataset:
    """All 1360 images below a folder, whether they exist or not."""
    labels = tuple(index // IMAGES_PER_CLASS for index in range(len(PATHS)))
    return ImageDataset("flowers17", folder, CLASSES, PATHS, labels, notes=notes)


def is_from_flowers17(dataset: ImageDataset) -> bool:
    """Whether a dataset is Flowers-17, or what an exclude list left of it."""
    return set(dataset.classes) <= set(CLASSES) and set(dataset.paths) <= set(PATHS)


def by_file_name(split: dict[str, list[int]], dataset: ImageDataset) -> dict[str, list[int]]:
    """A split of the whole set as indices into the images that are left of it."""
    index = {path: i for i, path in enumerate(dataset.paths)}
    return {name: [index[PATHS[i]] for i in members if PATHS[i] in index] for name, members in split.items()}


def is_flowers17(folder: Path) -> bool:
    """Whether a folder has the layout of the unpacked archive."""
    return (folder / PATHS[0]).is_file() and (folder / PATHS[-1]).is_file()


def official_split(dataset: ImageDataset, which: int, cache: Path | None = None) -> dict[str, list[int]]:
    """One of Oxford's three splits into 680/340/340 images, without those that are excluded.

    Raises:
        ResourceError: `datasplits.mat` is neither beside the archive nor in the cache, and no network.
        DataError: the file is not Oxford's.
        UsageError: no such split, or SciPy is not installed.
    """
    if which not in (1, 2, 3):
        raise UsageError(f"Oxford has splits 1, 2 and 3, not {which}", "choose one of them")
    path = dataset.root / SPLITS_NAME
    if not path.exists():  # nothing is written beside the images: the folder may be a user's own
        path = Path(cache or cache_folder()) / SPLITS_NAME
    if not path.exists():
        other_ways = f"put {SPLITS_NAME} beside the archive, or use a split of fractions"
        download(SPLITS_URL, path, SPLITS_MD5, "md5", other_ways)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UsageError("Oxford's splits need SciPy", "pip install scipy") from error
    keys = {"train": f"trn{which}", "val": f"val{which}", "test": f"tst{which}"}
    kind, fix = f"a split of the {len(PATHS)} photos", f"remove it, or put Oxford's own there ({SPLITS_URL})"
    with reading(path, kind, DataError, fix):  # SciPy raises ValueError, TypeError, KeyError, ... on other files
        content = loadmat(
            io.BytesIO(read_bytes(path, kind, DataError, SPLITS_BYTES)), variable_names=list(keys.values())
        )
        with np.errstate(all="ignore"):  # the check below finds values that name no photo
            splits = {split: sorted((content[key].ravel().astype(int) - 1).tolist()) for split, key in keys.items()}
        if sorted(sum(splits.values(), [])) != list(range(len(PATHS))):
            raise ValueError("some photos are in no split or in several")
    return by_file_name(splits, dataset)
