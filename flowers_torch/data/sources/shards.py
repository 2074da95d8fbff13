"""Tar shards as WebDataset lays them out, read where they lie: for sets larger than the disk cache.

    train-0000.tar   0001.jpg 0001.cls 0002.jpg 0002.cls ...     or   rose/0001.jpg tulip/0002.jpg ...

A shard is listed once, by its headers, and its photos are then photos like any others: the same loader,
check, split, order and resume. So no shuffle buffer is needed, and nothing is gained from the webdataset
package, whose order is that of a stream.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import is_image_name
from flowers_torch.data.sources.folders import (
    check_split_classes,
    counted,
    list_folder,
    natural_key,
    split_of_name,
)
from flowers_torch.data.sources.tar_members import SUFFIX, members, open_member
from flowers_torch.errors import DataError, printable

CLASS_LISTS = ("classes.txt", "labels.txt", "classnames.txt")  # beside the shards: line n names class n
LABEL_FIELDS = ("label", "class", "class_name", "cls", "category")  # of a .json beside a photo
MAX_LABEL_BYTES = 1024**2


def find_shards(source: str | Path) -> list[Path]:
    """The shards that a source names, in natural order; none where it is no source of shards.

    Args:
        source: A folder of .tar files without class folders, or a pattern of such files with `*` or with a
            range in braces, as `set/train-{0000..0041}.tar`.

    Raises:
        DataError: a pattern that no file matches, or a shard of a range that is not there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        folders, files = list_folder(path)
        return [] if folders else [path / name for name in files if name.lower().endswith(SUFFIX)]
    if path.exists() or not path.name.lower().endswith(SUFFIX):
        return []
    if found := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path.name):
        before, first, last, after = found.groups()
        names = [f"{before}{n:0{len(first)}}{after}" for n in range(int(first), int(last) + 1)]
        paths = [path.with_name(name) for name in names]
        absent = [p for p in paths if not p.is_file()]
        if absent or not paths:
            what = f"{len(absent)} of {len(paths)} shards of {printable(source)} are not there"
            raise DataError(f"{what} (first: {printable(absent[0])})" if absent else what, "name those there")
        return paths
    if "*" not in path.name:
        return []
    paths = sorted(path.parent.glob(path.name), key=lambda p: natural_key(p.name))
    if not paths:
        raise DataError(f"no shard matches {printable(source)}", "quote the pattern, or name the folder")
    return paths


def read_shards(shards: list[Path]) -> ImageDataset:
    """Photos of tar shards of one folder.

    A photo's label is in `KEY.cls` or `KEY.json` beside `KEY.jpg`, else the name of its folder in the shard.
    Labels that are numbers are named by `classes.txt` beside the shards, where there is one. Shards whose
    names hold train, val or test make a split, and so do folders of these names above the class folders.

    Raises:
        DataError: unreadable shards, photos without a label, one class only, parts whose classes differ.
    """
    root = shards[0].parent
    rows: list[tuple[str, str, str]] = []  # path, label, part
    other: Counter[str] = Counter()
    unlabelled: list[str] = []
    for shard in shards:
        part_of_shard = _part(re.split(r"[^A-Za-z]+", shard.stem))
        names = members(shard)
        beside = {name for name in names if name.lower().endswith((".cls", ".json"))}
        labels = {_key(name): name for name in beside}
        for name in names:
            path = f"{shard.name}/{name}"
            if is_image_name(name) and not PurePosixPath(name).name.startswith("."):
                label = _label(shard, labels.get(_key(name))) or PurePosixPath(name).parent.name
                # Above the class folder a shard may hold folders of parts, as an archive of a split set does.
                part = part_of_shard or _part(PurePosixPath(name).parts[:-2])
                rows.append((path, label, part))
                if not label:
                    unlabelled.append(path)
            elif name not in beside:
                other[PurePosixPath(name).suffix.lower() or "no suffix"] += 1
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(rows)} photos in the shards of {printable(root)} have no label "
            f"(first: {printable(unlabelled[0])})",
            "put a .cls or .json beside each, or class folders into the shards",
        )
    if not rows:
        raise DataError(f"the shards of {printable(root)} hold no photos", "write photos and labels to them")
    rows.sort(key=lambda row: natural_key(row[0]))
    names_of = _class_names(root, {label for _, label, _ in rows})
    classes = sorted(set(names_of.values()), key=natural_key)
    if all(label.isdecimal() for label in names_of):
        classes = [names_of[label] for label in sorted(names_of, key=int)]
    if len(classes) < 2:
        raise DataError(f"the shards of {printable(root)} hold one class only", "add photos of another class")
    index = {name: position for position, name in enumerate(classes)}
    split = {path: part for path, _, part in rows if part}
    if len(set(split.values())) > 1:
        if len(split) < len(rows):
            lost = next(path for path, _, part in rows if not part)
            raise DataError(
                f"the part of {printable(lost)} is not clear from its shard's name",
                "let it say train or test",
            )
        by_part: dict[str, set[str]] = {}
        for _, label, part in rows:
            by_part.setdefault(part, set()).add(names_of[label])
        check_split_classes(by_part, root)
    else:
        split = {}
    notes = [f"{len(shards)} shards, read where they lie"]
    if other:
        notes.append(f"ignored {other.total()} files that are no photos: {counted(other)}")
    return ImageDataset(
        root.resolve().name,
        root,
        tuple(classes),
        tuple(path for path, _, _ in rows),
        tuple(index[names_of[label]] for _, label, _ in rows),
        split,
        notes=tuple(notes),
    )


def _part(words: Iterable[str]) -> str:
    """ "train", "val" or "test" where one of the words names that part, else nothing."""
    return next(filter(None, map(split_of_name, words)), "")


def _key(name: str) -> str:
    """What the files of one sample have in common: all up to the first dot of the file's name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _label(shard: Path, name: str | None) -> str:
    if name is None:
        return ""
    with open_member(shard, name) as file:
        content = file.read(MAX_LABEL_BYTES)
    where = f"{printable(shard)}/{printable(name)}"
    try:
        text = content.decode("utf-8").strip()
        if name.lower().endswith(".cls"):
            return text
        values = json.loads(text)
        return next((str(values[field]).strip() for field in LABEL_FIELDS if field in values), "")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where} holds no label: {printable(error)}", "write a name or a number") from error


def _class_names(root: Path, labels: set[str]) -> dict[str, str]:
    """Label to class name: the line of that number where labels are numbers and a list is there."""
    lists = [root / name for name in CLASS_LISTS if (root / name).is_file()]
    if not lists or not all(label.isdecimal() for label in labels):
        return {label: label for label in labels}
    names = lists[0].read_text(encoding="utf-8", errors="replace").splitlines()
    highest = max(map(int, labels))
    if highest >= len(names) or len(set(names)) < len(names) or "" in names[: highest + 1]:
        raise DataError(
            f"{printable(lists[0])} has {len(set(names) - {''})} names, the labels reach to {highest}",
            "write one name a line, in the order of the labels from 0",
        )
    return {label: names[int(label)] for label in labels}
