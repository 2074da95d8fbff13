"""The physical before training: what is wrong with a set of photos, worst first, and what to do about it.

The user's files are never touched. What should stay out of training is listed in `exclude.csv`, which
training honours.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.duplicates import exact_duplicates, near_duplicates
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.splits.assign import IMBALANCE, Splits
from flowers_torch.errors import DataError, printable
from flowers_torch.files.atomic import write_text

MIN_SIDE = 64  # pixels; smaller photos hold little to learn from
MAX_ASPECT = 3.0  # a centre crop of a longer strip shows less than a third of it
BLANK_CONTRAST = 4.0  # out of 128
BLURRED_SHARE = 0.2  # of the set's median sharpness
GREY_COLOUR = 1.5  # mean difference of the channels, out of 255
FEW_IMAGES = 20  # a class; below this a test says little
SUFFIX_FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "MPO": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "WEBP": ".webp",
    "HEIF": ".heic .heif .hif",
}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble and the photos that have it.

    Attributes:
        kind: Short name, stable for programs.
        damage: 3 spoils training or its numbers, 2 harms them, 1 is worth a look.
        what: One sentence.
        todo: What to do about it.
        groups: Positions of the photos; twins stand together in a group, other photos alone.
        excluded: Positions that go into the quarantine.
    """

    kind: str
    severity: int
    what: str
    todo: str
    groups: list[list[int]] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class QualityReport:
    """The outcome of a check: findings by damage, and the groups of twins that must not be split up."""

    photos: ImageDataset
    inspections: list[Inspection]
    findings: list[Finding]
    duplicates: list[list[int]]

    def excluded(self) -> dict[int, str]:
        """Positions in the quarantine, each with the kind of its worst finding."""
        reasons: dict[int, str] = {}
        for finding in self.findings:
            for index in finding.excluded:
                reasons.setdefault(index, finding.kind)
        return dict(sorted(reasons.items()))

    def as_json(self) -> dict[str, Any]:
        """Everything as plain types."""
        photos = self.photos
        return {
            "data": photos.name,
            "photos": len(photos),
            "classes": dict(zip(photos.classes, photos.counts(), strict=True)),
            "findings": [
                {k: v for k, v in asdict(finding).items() if k not in ("groups", "excluded")}
                | {"groups": [[photos.paths[i] for i in group] for group in finding.groups]}
                for finding in self.findings
            ],
            "exclude": {photos.paths[i]: reason for i, reason in self.excluded().items()},
        }


def check_quality(
    photos: ImageDataset,
    inspections: list[Inspection],
    split: Splits | None = None,
    features: np.ndarray | None = None,
    duplicates: list[list[int]] | None = None,
) -> QualityReport:
    """Judges a set of photos.

    Args:
        photos: The set.
        inspections: One a photo, from `scan.inspect_images`.
        split: Parts, to find twins across them; the source's own split if None.
        features: Of a backbone (N, D), to find twins that a hash misses.
        twins: What `twins.near_duplicates` finds, where that is known.
    """
    part = dict(photos.split)
    if split is not None:
        part = {photos.paths[i]: name for name, indices in split.items() for i in indices}
    exact = exact_duplicates(inspections)
    if duplicates is None:
        duplicates = near_duplicates(photos, inspections, features)
    findings = [
        *_unreadable(inspections),
        *_twins(photos, exact, duplicates, part),
        *_looks(photos, inspections),
        *_classes(photos, inspections),
    ]
    findings += [Finding("note", 1, note, "nothing, if that is meant") for note in photos.notes]
    findings.sort(key=lambda finding: -finding.severity)  # stable: within a damage the order above stays
    return QualityReport(photos, inspections, findings, duplicates)


def _unreadable(inspections: Sequence[Inspection]) -> list[Finding]:
    bad = [index for index, seen in enumerate(inspections) if seen.error]
    what = f"{_count(bad)} cannot be read"
    return _finding("unreadable", 3, what, "replace or remove them", bad, excluded=bad)


def _twins(
    photos: ImageDataset, exact: list[list[int]], duplicates: list[list[int]], part: dict[str, str]
) -> list[Finding]:
    def labels(group: list[int]) -> set[int]:
        return {photos.labels[i] for i in group}

    def parts(group: list[int]) -> set[str]:
        return {part[photos.paths[i]] for i in group if photos.paths[i] in part}

    contradicting = [group for group in duplicates if len(labels(group)) > 1]
    leaking = [group for group in duplicates if len(parts(group)) > 1]
    doubled = [group for group in exact if len(labels(group)) == 1]
    resaved = [group for group in duplicates if len(labels(group)) == 1 and group not in doubled]
    found = []
    if contradicting:  # guard: D27 labels
        what = f"{len(contradicting)} pictures are in several classes at once"
        todo = "keep each in its true class only; all their copies are in the quarantine"
        found.append(Finding("twins_across_classes", 3, what, todo, contradicting, sum(contradicting, [])))
    if leaking:  # guard: D27 splits
        what = f"{len(leaking)} pictures are in more than one part of the split: its test is too easy"
        todo = "split with --groups duplicates, or keep one of each"
        found.append(Finding("twins_across_parts", 3, what, todo, leaking))
    if doubled:
        what = f"{len(doubled)} photos are there more than once, byte for byte"
        copies = [i for group in doubled for i in group[1:]]
        found.append(Finding("exact_duplicates", 2, what, "remove the copies", doubled, copies))
    if resaved:
        what = f"{len(resaved)} pictures are there more than once, saved again, scaled or mirrored"
        todo = "split with --groups duplicates, so that no copy of a training photo is in the test"
        found.append(Finding("near_duplicates", 2, what, todo, resaved))
    return found


def _looks(photos: ImageDataset, inspections: Sequence[Inspection]) -> list[Finding]:
    good = [(i, seen) for i, seen in enumerate(inspections) if not seen.error]
    median = float(np.median([seen.sharpness for _, seen in good])) if good else 0.0

    def where(test: Callable[[Inspection], bool]) -> list[int]:
        return [i for i, seen in good if test(seen)]

    blank = where(lambda seen: seen.contrast < BLANK_CONTRAST)
    tiny = where(lambda seen: min(seen.width, seen.height) < MIN_SIDE)
    strips = where(lambda seen: max(seen.width, seen.height) > MAX_ASPECT * min(seen.width, seen.height))
    blurred = where(lambda seen: seen.contrast >= BLANK_CONTRAST and seen.sharpness < BLURRED_SHARE * median)
    grey = where(lambda seen: seen.colour < GREY_COLOUR and seen.contrast >= BLANK_CONTRAST)
    lying = [i for i, seen in good if not photos.paths[i].lower().endswith(_suffixes(seen.format))]
    alpha = where(lambda seen: seen.alpha)
    deep = where(lambda seen: seen.mode.startswith("I"))
    cmyk = where(lambda seen: seen.mode == "CMYK")
    several = where(lambda seen: seen.frames > 1)
    look = "look at them in the gallery"
    mixed = len(grey) < len(good) / 2  # a set of grey photos is just that
    return [
        *_finding("blank", 2, f"{_count(blank)} show nothing", "remove them", blank, excluded=blank),
        *_finding("tiny", 2, f"{_count(tiny)} are smaller than {MIN_SIDE} pixels", look, tiny),
        *_finding(
            "odd_aspect", 2, f"{_count(strips)} are longer than {MAX_ASPECT:g}:1", "crop them", strips
        ),
        *_finding("blurred", 1, f"{_count(blurred)} are far less sharp than the others", look, blurred),
        *_finding("grey", 1, f"{_count(grey)} are grey among coloured ones", look, grey if mixed else []),
        *_finding(
            "other_format", 1, f"{_count(lying)} are of another format than their name says",
            "nothing: the content decides", lying,
        ),
        *_finding("alpha", 1, f"{_count(alpha)} are transparent in places", "nothing: shown on white", alpha),
        *_finding("deep", 1, f"{_count(deep)} have 16 bits", "nothing: scaled to 8 bits", deep),
        *_finding("cmyk", 1, f"{_count(cmyk)} are in print colours", "nothing: converted to RGB", cmyk),
        *_finding("several_frames", 1, f"{_count(several)} hold several pictures",
                  "nothing: the first one counts", several),
    ]  # fmt: skip


def _classes(photos: ImageDataset, inspections: Sequence[Inspection]) -> list[Finding]:
    counts = Counter(label for label, seen in zip(photos.labels, inspections, strict=True) if not seen.error)
    names = [printable(name, 60) for name in photos.classes]
    found = []
    empty = [names[label] for label in range(len(names)) if not counts[label]]
    if empty:
        what = f"no readable photo in: {', '.join(empty)}"
        found.append(Finding("no_readable_photo", 3, what, "add photos or remove these classes"))
    few = [
        f"{names[label]} ({counts[label]})" for label in range(len(names)) if 0 < counts[label] < FEW_IMAGES
    ]
    if few:
        what = f"fewer than {FEW_IMAGES} photos in: {', '.join(few)}"
        found.append(Finding("few_photos", 2, what, "add photos: the test cannot say much about them"))
    rarest, commonest = min(counts.values(), default=0), max(counts.values(), default=0)
    if rarest and commonest >= IMBALANCE * rarest:
        what = f"classes are lopsided: from {rarest} to {commonest} photos"
        todo = "add photos of the rare ones, or train with balanced class weights (they are off by default)"
        found.append(Finding("lopsided", 1, what, todo))
    return found


def _finding(
    kind: str, severity: int, what: str, todo: str, indices: list[int], excluded: Sequence[int] = ()
) -> list[Finding]:
    groups = [[index] for index in indices]
    return [Finding(kind, severity, what, todo, groups, list(excluded))] if indices else []


def _count(indices: list[int]) -> str:
    return "1 photo" if len(indices) == 1 else f"{len(indices)} photos"


def _suffixes(format: str) -> tuple[str, ...]:
    return tuple(SUFFIX_FORMATS[format].split())


def write_exclude_list(path: Path, result: QualityReport) -> None:
    """Writes `exclude.csv`: file, reason. Lines may be deleted or added by hand."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "reason"])
    writer.writerows((result.photos.paths[i], reason) for i, reason in result.excluded().items())
    write_text(path, text.getvalue())


def read_exclude_list(path: Path) -> dict[str, str]:
    """Relative path to reason.

    Raises:
        DataError: no such file, or no `file` column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        what = f"cannot read the quarantine {printable(path)}: {error.strerror}"
        raise DataError(what, "name the exclude.csv of a check") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "file" not in (rows.fieldnames or ()):
        what = f"{printable(path)} has no column 'file'"
        raise DataError(what, "name the exclude.csv of a check")
    return {row["file"]: row.get("reason") or "by hand" for row in rows if row["file"]}


def drop_images(photos: ImageDataset, exclude: dict[str, str]) -> ImageDataset:
    """The set without the photos of a quarantine.

    Raises:
        DataError: nothing would be left of a class; all such classes are named.
    """
    kept = [i for i, path in enumerate(photos.paths) if path not in exclude]
    remaining = {photos.labels[i] for i in kept}
    empty = [printable(name, 60) for label, name in enumerate(photos.classes) if label not in remaining]
    if empty:  # guard: D33
        what = f"the quarantine leaves no photo of {', '.join(empty)}"
        raise DataError(what, "replace those photos, or remove these classes")
    if len(kept) == len(photos):
        return photos
    paths = tuple(photos.paths[i] for i in kept)
    return replace(
        photos,
        paths=paths,
        labels=tuple(photos.labels[i] for i in kept),
        split={path: photos.split[path] for path in paths if path in photos.split},
        groups={path: photos.groups[path] for path in paths if path in photos.groups},
        notes=(*photos.notes, f"{len(photos) - len(kept)} photos are in quarantine"),
    )
