"""Tar shards of WebDataset, read without unpacking: `0001.jpg 0001.cls ...` or `rose/0001.jpg tulip/0002.jpg ...`.

Images in shards are addressed by path like any others, so an epoch is shuffled as a whole without a buffer.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import is_image_name
from flowers_torch.data.sources.rows import Row, counted, dataset_from_rows, natural_key, split_of_name
from flowers_torch.data.sources.tree import list_folder
from flowers_torch.data.tar_members import SUFFIX, members, open_member
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.reading import read_bytes, reading
from flowers_torch.files.system import expand_home

CLASS_LISTS = ("classes.txt", "labels.txt", "classnames.txt")  # beside the shards: line n names class n
LABEL_FIELDS = ("label", "class", "class_name", "cls", "category")  # of a .json beside an image
MAX_LABEL = 200  # characters
MAX_LABEL_BYTES = 1024**2


def find_shards(source: str | Path) -> list[Path]:
    """The shards of a source in natural order; an empty list if the source is something else.

    The source is a folder of .tar files without class folders, or a pattern with `*` or a range:
    `set/train-{0000..0041}.tar`. A pattern without a match or a missing shard is a `DataError`.
    """
    path = expand_home(source)
    if path.is_dir():
        folders, files = list_folder(path)
        return [] if folders else [path / name for name in files if name.lower().endswith(SUFFIX)]
    if path.exists() or not path.name.lower().endswith(SUFFIX):
        return []
    if found := re.fullmatch(r"(.*)\{(\d{1,6})\.\.(\d{1,6})\}(.*)", path.name):
        before, first, last, after = found.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [path.with_name(f"{before}{number:0{len(first)}}{after}") for number in numbers]
        absent = [p for p in paths if not p.is_file()]
        if absent or not paths:
            do = "does" if len(absent) == 1 else "do"
            what = f"{len(absent)} of {plural(paths, 'shard')} of {printable(source)} {do} not exist"
            raise DataError(f"{what} (first: {printable(absent[0])})" if absent else what, "name existing shards")
        return paths
    if "*" not in path.name:
        return []
    if paths := sorted(path.parent.glob(path.name), key=lambda p: natural_key(p.name)):
        return paths
    raise DataError(f"no shard matches {printable(source)}", "quote the pattern, or name the folder")


def read_shards(shards: list[Path]) -> ImageDataset:
    """Reads a dataset from tar shards of one folder.

    The label of `KEY.jpg` is in `KEY.cls` or `KEY.json`, else it is the name of the image's folder. Numeric
    labels are named by `classes.txt` beside the shards. A split comes from shard names that contain train,
    val or test, or from folders of these names above the class folders.

    Raises:
        DataError: unreadable shards, images without a label, one class, or splits whose classes differ.
    """
    root = shards[0].parent
    rows: list[Row] = []
    other: Counter[str] = Counter()
    for shard in shards:
        _list_shard(shard, rows, other)
    unlabeled = [path for path, label, _ in rows if not label]
    if unlabeled:
        have = "has" if len(unlabeled) == 1 else "have"
        what = f"{len(unlabeled)} of {plural(rows, 'photo')} in the shards of {printable(root)} {have} no label"
        what += f" (first: {printable(unlabeled[0])})"
        raise DataError(what, "put a .cls or .json beside each, or class folders into the shards")
    if not rows:
        raise DataError(f"the shards of {printable(root)} hold no photos", "write photos and labels to them")
    names_of = _class_names(root, {label for _, label, _ in rows})
    classes = sorted(set(names_of.values()), key=natural_key)
    if all(map(_is_number, names_of)):
        classes = [names_of[label] for label in sorted(names_of, key=int)]
    has_split = len({split for _, _, split in rows if split}) > 1
    unclear = min((path for path, _, split in rows if not split), key=natural_key, default=None)
    if has_split and unclear is not None:
        what = f"the split of {printable(unclear)} is not clear from its shard's name"
        raise DataError(what, "put train, val or test into the name")
    labeled = [(path, names_of[label], split if has_split else "") for path, label, split in rows]
    notes = [f"{plural(shards, 'shard')}, read without unpacking"]
    if other:
        count = plural(other.total(), "file that is not a photo", "files that are not photos")
        notes.append(f"ignored {count}: {counted(other)}")
    dataset = dataset_from_rows(root, root, root.resolve().name, classes, labeled, notes)
    return replace(dataset, layout="tar shards")


def _list_shard(shard: Path, rows: list[Row], other: Counter[str]) -> None:
    """Appends the images of a shard to `rows`, and counts the suffixes of what is neither image nor label."""
    split_of_shard = split_of_name(*re.split(r"[^A-Za-z]+", shard.stem))
    names = members(shard)
    label_files = {name for name in names if name.lower().endswith((".cls", ".json"))}
    label_of = {_key(name): name for name in label_files}
    for name in names:
        path = PurePosixPath(name)
        if is_image_name(name) and not path.name.startswith("."):
            label = sys.intern(_read_label(shard, label_of.get(_key(name))) or path.parent.name)
            rows.append((f"{shard.name}/{name}", label, split_of_shard or split_of_name(*path.parts[:-2])))
        elif name not in label_files:
            other[path.suffix.lower() or "no suffix"] += 1


def _key(name: str) -> str:
    """The common name of the files of one sample: everything up to the first dot of the file name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _read_label(shard: Path, name: str | None) -> str:
    if name is None:
        return ""
    kind, fix = "a file with a label", "write a name or a number"
    with reading(shard / name, kind, DataError, fix), open_member(shard, name) as file:  # guard: S8 label
        content = file.read(MAX_LABEL_BYTES)
        if name.lower().endswith(".cls"):
            label = content.decode("utf-8")
        else:
            values = json.loads(content)
            label = next((values[field] for field in LABEL_FIELDS if field in values), "")
            if not isinstance(label, str | int):
                raise ValueError("its label is neither a name nor a number")
        if len(label := str(label).strip()) > MAX_LABEL:
            raise ValueError(f"its label has more than {MAX_LABEL} characters")
        return label


def _is_number(label: str) -> bool:
    return label.isdecimal() and len(label) < 10  # guard: S8 number


def _class_names(root: Path, labels: set[str]) -> dict[str, str]:
    """Label to class name: a line of the class list if the labels are numbers and there is a list."""
    lists = [root / name for name in CLASS_LISTS if (root / name).is_file()]
    if not lists or not all(map(_is_number, labels)):
        return {label: label for label in labels}
    names = read_bytes(lists[0], "a class list", DataError, MAX_LABEL_BYTES).decode("utf-8", "replace").splitlines()
    highest = max(map(int, labels))
    if highest >= len(names) or len(set(names)) < len(names) or "" in names[: highest + 1]:
        what = f"{printable(lists[0])} has {len(set(names) - {''})} names, but the labels go up to {highest}"
        raise DataError(what, "write one name on each line, in the order of the labels from 0")
    return {label: names[int(label)] for label in labels}
