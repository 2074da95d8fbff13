"""`split.json`: which photos a run had in which part, and whether they are still the same."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import open_regular
from flowers_torch.data.splits.assign import SPLITS, Splits
from flowers_torch.errors import DataError, printable
from flowers_torch.files.atomic import write_json

SPLIT_FORMAT = 1
EDGE_BYTES = 16384  # read from each end of a photo to notice that it was edited


@dataclass(frozen=True)
class DataChanges:
    """How photos differ from those that a split was saved for; paths by part.

    Attributes:
        missing: Photos of the split that are not there any more.
        edited: Photos of the split with other bytes than then.
        added: Photos that the split does not know; they are in no part.
    """

    missing: dict[str, list[str]]
    edited: dict[str, list[str]]
    added: list[str]

    def __bool__(self) -> bool:
        return any(self.counts().values())

    def counts(self) -> dict[str, int]:
        """How many photos are missing, edited and added."""
        missing, edited = (sum(map(len, found.values())) for found in (self.missing, self.edited))
        return {"missing": missing, "edited": edited, "added": len(self.added)}

    def table(self) -> str:
        """A line for each part with its counts, and the first photo of each kind."""
        lines = [f"{'part':9}{'missing':>9}{'edited':>9}{'added':>9}"]
        for part in SPLITS:
            lines.append(f"{part:9}{len(self.missing[part]):9}{len(self.edited[part]):9}{0:9}")
        lines.append(f"{'in none':9}{0:9}{0:9}{len(self.added):9}")
        for kind, names in (
            ("missing", sum(self.missing.values(), [])),
            ("edited", sum(self.edited.values(), [])),
            ("added", self.added),
        ):
            if names:
                lines.append(f"first {kind}: {printable(names[0])}")
        return "\n".join(lines)

    def refuse(self, path: Path, fix: str) -> None:
        """Raises where anything changed.

        Raises:
            DataError: how many photos are missing, edited and added, and the first of them.
        """
        if not self:
            return
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        first = next(iter([*sum(self.missing.values(), []), *sum(self.edited.values(), []), *self.added]))
        raise DataError(
            f"the photos are not those of {printable(path)}: {counts} (first: {printable(first)})", fix
        )


def fingerprint(path: Path) -> str:
    """A short digest of a photo's size and of both ends of its bytes: cheap, and edits change it."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        end = file.read(EDGE_BYTES)
    return hashlib.blake2b(b"%d\0" % size + start + end, digest_size=8).hexdigest()  # guard: D31 same size


def save_split(split: Splits, photos: ImageDataset, path: Path, seed: int) -> None:
    """Writes `split.json`: relative paths and fingerprints by part, for later runs to have the same parts."""
    write_json(
        path,
        {
            "format": SPLIT_FORMAT,
            "data": photos.name,
            "seed": seed,
            "classes": list(photos.classes),
            "counts": {part: len(indices) for part, indices in split.items()},
            "parts": {
                part: {photos.paths[i]: fingerprint(photos.root / photos.paths[i]) for i in indices}
                for part, indices in split.items()
            },
        },
    )


def load_split(path: Path, photos: ImageDataset) -> tuple[Splits, DataChanges]:
    """Reads `split.json` back as indices into `photos.paths`, and compares the photos with those of then.

    Photos that are missing are left out of their part, new ones stay out of every part.

    Args:
        path: The file.
        photos: The set as it is now.

    Raises:
        DataError: no such file, no split, other classes, or a part of which no photo is left.
    """
    content = read_split(path)
    if content["classes"] != list(photos.classes):
        raise DataError(
            f"{printable(path)} was made for other classes than those of {printable(photos.name)}",
            "use the data that it was made for, or make a new split",
        )
    parts: dict[str, dict[str, str]] = content["parts"]
    index = {name: i for i, name in enumerate(photos.paths)}
    known = set().union(*parts.values())
    changes = DataChanges(
        {part: [name for name in parts[part] if name not in index] for part in SPLITS},
        {
            part: [
                name
                for name, mark in parts[part].items()
                if name in index and fingerprint(photos.root / name) != mark
            ]
            for part in SPLITS
        },
        [name for name in photos.paths if name not in known],
    )
    split = {part: sorted(index[name] for name in parts[part] if name in index) for part in SPLITS}
    emptied = [part for part in SPLITS if parts[part] and not split[part]]
    if emptied:
        raise DataError(
            f"none of the {emptied[0]} photos of {printable(path)} is left in {printable(photos.root)}",
            "put them back, or start a new run",
        )
    return split, changes


def read_split(path: Path) -> dict[str, Any]:
    """What `split.json` holds: `parts` by name, each from path to fingerprint, `classes`, `seed`, `data`.

    Raises:
        DataError: no such file, or no split.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the split {printable(path)}: {printable(error)}", "make a new split"
        ) from error
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not isinstance(content.get("classes"), list):
        raise DataError(f"{printable(path)} is no split of this package", "make a new split")
    if content.get("format") != SPLIT_FORMAT:
        raise DataError(
            f"{printable(path)} has format {printable(content.get('format'))}, expected {SPLIT_FORMAT}",
            "make a new split",
        )
    if set(parts) != set(SPLITS) or not all(isinstance(members, dict) for members in parts.values()):
        raise DataError(f"{printable(path)} lacks one of {', '.join(SPLITS)}", "make a new split")
    if sum(map(len, parts.values())) != len(set().union(*parts.values())):
        raise DataError(f"{printable(path)} lists a photo in two parts", "make a new split")
    return content
