"""`split.json`: the split of each image of a run, with fingerprints that reveal changed files."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import open_regular
from flowers_torch.data.splits.assign import SPLITS, Splits
from flowers_torch.data.spread import Spread, alone
from flowers_torch.errors import DataError, printable
from flowers_torch.files.atomic import write_json
from flowers_torch.files.reading import MAX_FILE_BYTES, read_json, reading

SPLIT_FORMAT = 2
BLOCK = 10_000  # images that are read together
FORM = {
    "format": {SPLIT_FORMAT},
    "data": str,
    "seed": int,
    "classes": [str],
    "splits": {split: {str: str} for split in SPLITS},
}


@dataclass(frozen=True)
class DataChanges:
    """Differences between the images of a dataset and those of a saved split."""

    missing: list[tuple[str, str]]  # split and path of images that do not exist any more
    edited: list[tuple[str, str]]  # of images whose content has changed
    added: list[tuple[str, str]]  # of images that are not in the saved split; their split is "none"

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def counts(self) -> dict[str, int]:
        """Number of missing, edited and added images."""
        return {kind: len(images) for kind, images in vars(self).items()}

    def table(self) -> str:
        """The counts of each split in lines, and the first image of each kind."""
        lines = [f"{'split':9}{'missing':>9}{'edited':>9}{'added':>9}"]
        for split in (*SPLITS, "none"):
            counts = [sum(own == split for own, _ in images) for images in vars(self).values()]
            lines.append(f"{split:9}" + "".join(f"{count:9}" for count in counts))
        lines += [f"first {kind}: {printable(images[0][1])}" for kind, images in vars(self).items() if images]
        return "\n".join(lines)

    def refuse(self, path: Path, fix: str) -> None:
        """Raises a `DataError` with the counts and the first image if anything changed."""
        if self:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
            first = [*self.missing, *self.edited, *self.added][0][1]
            what = f"the photos are not those of {printable(path)}: {counts} (first: {printable(first)})"
            raise DataError(what, fix)


def fingerprint(path: Path) -> str:
    """A short digest of a file's content."""
    digest = hashlib.blake2b(digest_size=8)
    with reading(path, "a photo"), open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)  # guard: D31 same size
    return digest.hexdigest()


def fingerprints(paths: Sequence[Path]) -> list[str]:
    """The fingerprints of several files."""
    return [fingerprint(path) for path in paths]


def save_split(splits: Splits, dataset: ImageDataset, path: Path, seed: int, spread: Spread = alone) -> None:
    """Writes `split.json` with the relative paths and fingerprints of each split; `spread` reads the images."""
    members = {split: [dataset.paths[i] for i in indices] for split, indices in splits.items()}
    names = [name for paths in members.values() for name in paths]
    digests = _fingerprints(names, dataset, spread)
    content = {
        "format": SPLIT_FORMAT,
        "data": dataset.name,
        "seed": seed,
        "classes": list(dataset.classes),
        "counts": {split: len(names) for split, names in members.items()},
        "splits": {split: dict(zip(paths, digests, strict=False)) for split, paths in members.items()},
    }
    write_json(path, content)


def _fingerprints(names: Sequence[str], dataset: ImageDataset, spread: Spread) -> Iterator[str]:
    for start in range(0, len(names), BLOCK):
        yield from spread(fingerprints, [dataset.root / name for name in names[start : start + BLOCK]])


def load_split(path: Path, dataset: ImageDataset, spread: Spread = alone) -> tuple[Splits, DataChanges]:
    """Reads `split.json` as indices into `dataset.paths`, and compares the images; `spread` reads them.

    Missing images are left out of their split; new images are in no split. What `read_split` refuses, other
    classes, and a split without any image left are a `DataError`.
    """
    content = read_split(path)
    if content["classes"] != list(dataset.classes):
        what = f"{printable(path)} was made for other classes than those of {printable(dataset.name)}"
        raise DataError(what, "use the data that it was made for, or make a new split")
    saved: dict[str, dict[str, str]] = content["splits"]
    index = {name: i for i, name in enumerate(dataset.paths)}
    known = set().union(*saved.values())
    changes = DataChanges([], [], [("none", name) for name in dataset.paths if name not in known])
    present = _fingerprints([name for split in SPLITS for name in saved[split] if name in index], dataset, spread)
    for split in SPLITS:
        for name, digest in saved[split].items():
            if name not in index:
                changes.missing.append((split, name))
            elif next(present) != digest:
                changes.edited.append((split, name))
    splits = {split: sorted(index[name] for name in saved[split] if name in index) for split in SPLITS}
    emptied = [split for split in SPLITS if saved[split] and not splits[split]]
    if emptied:
        what = f"none of the {emptied[0]} photos of {printable(path)} is left in {printable(dataset.root)}"
        raise DataError(what, "put them back, or start a new run")
    return splits, changes


def read_split(path: Path) -> dict[str, Any]:
    """The content of `split.json`: `splits` (name to path to fingerprint), `classes`, `seed`, `data`."""
    fix = "make a new split"
    content: dict[str, Any] = read_json(path, "a split of this package", FORM, DataError, fix, MAX_FILE_BYTES)
    splits = content["splits"]
    if set(splits) != set(SPLITS) or sum(map(len, splits.values())) != len(set().union(*splits.values())):
        raise DataError(f"{printable(path)} lists a photo in two splits, or has another split", fix)
    return content
