"""The quality report of a dataset: findings, worst first, with advice. No file of the user changes."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowers_torch.data.dataset import CLASS_MARK, ImageDataset
from flowers_torch.data.images import SUFFIXES
from flowers_torch.data.mirrored_names import mirrored_classes
from flowers_torch.data.quality.duplicates import Duplicates, exact_duplicates, near_duplicates, similar_features
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.splits.assign import IMBALANCE, SPLITS, Splits, join_groups
from flowers_torch.data.value_range import describe, range_of_set
from flowers_torch.errors import plural, printable

MIN_SIDE = 64  # pixels
MAX_ASPECT = 3.0  # a center crop of a longer strip shows less than a third of it
BLANK_CONTRAST = 4.0  # out of 128
BLURRED_FRACTION = 0.2  # of the dataset's median sharpness
GRAY_COLORFULNESS = 1.5  # mean difference of the channels, out of 255
FEW_IMAGES = 20  # of a class; with fewer, a test result is hardly meaningful
LARGE_GROUP = 20  # near-duplicates; more of one picture are rather look-alikes, such as frames of a still scene
MANY_ACROSS = 0.1  # of the images are near-duplicates across classes: the classes rather look alike
DARK_FRACTION = 1 / 8  # of the set's range of values; darker photos have fewer than 32 gray levels left
MANY_ALIKE = 20  # images that look alike are worth a finding
SINGULAR = {"are": "is", "have": "has", "hold": "holds", "show": "shows"}


@dataclass(frozen=True)
class Finding:
    """A problem and the images that have it."""

    kind: str  # a short name for programs
    severity: int  # 3 spoils training or its results, 2 harms them, 1 is worth a look
    what: str  # one sentence
    todo: str  # advice
    groups: list[list[int]] = field(default_factory=list)  # of duplicates; other images are alone in theirs
    excluded: list[int] = field(default_factory=list)  # positions for the exclude list


@dataclass(frozen=True)
class QualityReport:
    """Findings by severity, and the groups of duplicates that must stay in one split."""

    dataset: ImageDataset
    inspections: list[Inspection]
    findings: list[Finding]
    duplicates: list[list[int]]

    def excluded(self) -> dict[int, str]:
        """Positions for the exclude list, each with the kind of its worst finding."""
        reasons = {index: finding.kind for finding in reversed(self.findings) for index in finding.excluded}
        return dict(sorted(reasons.items()))

    def exclude_list(self) -> dict[str, str]:
        """Relative path to reason of what the check advises to leave out."""
        return {self.dataset.paths[index]: reason for index, reason in self.excluded().items()}

    def as_json(self) -> dict[str, Any]:
        """The report in plain types."""
        dataset, findings = self.dataset, []
        for finding in self.findings:
            groups = [[dataset.paths[i] for i in group] for group in finding.groups]
            findings.append({k: getattr(finding, k) for k in ("kind", "severity", "what", "todo")} | {"groups": groups})
        return {
            "data": dataset.name,
            "images": len(dataset),
            "classes": dict(zip(dataset.classes, dataset.counts(), strict=True)),
            "findings": findings,
            "exclude": self.exclude_list(),
        }


def check_quality(
    dataset: ImageDataset,
    inspections: list[Inspection],
    splits: Splits | None = None,
    features: np.ndarray | None = None,
    duplicates: Duplicates | None = None,
) -> QualityReport:
    """Checks a dataset.

    Args:
        splits: Splits to find duplicates across; the source's own if None.
        features: Features of a backbone (N, D), to find crops and edits.
        duplicates: The result of `near_duplicates` if it is known.
    """
    split_of = dataset.split if splits is None else {dataset.paths[i]: s for s, own in splits.items() for i in own}
    if duplicates is None:
        duplicates = near_duplicates(dataset, inspections, mirrored_classes(dataset.classes) is None)
    place = {i: number for number, group in enumerate(duplicates.groups) for i in group}
    similar = [] if features is None else similar_features(features)
    similar = [group for group in similar if len({place.get(i, -1 - i) for i in group}) > 1]
    about_images = [
        *_check_readable(dataset, inspections),
        *_check_duplicates(dataset, inspections, duplicates, similar, split_of),
        *_check_appearance(dataset, inspections),
    ]
    findings = [finding for finding in about_images if finding.groups or finding.kind == "mixed_values"]
    findings += _check_classes(dataset, inspections)
    findings += [Finding("note", 1, note, "nothing, if that is intended") for note in dataset.notes]
    findings += [Finding("unused", 1, f"not used: {thing}", "nothing, if that is right") for thing in dataset.unused]
    findings.sort(key=lambda finding: -finding.severity)  # stable within a severity
    return QualityReport(dataset, inspections, findings, duplicates.groups)


def unreadable_reasons(dataset: ImageDataset, inspections: Sequence[Inspection]) -> dict[tuple[str, str], list[int]]:
    """The unreadable images by reason and fix, the most frequent first."""
    found: dict[tuple[str, str], list[int]] = {}
    for index, (path, inspection) in enumerate(zip(dataset.paths, inspections, strict=True)):
        if inspection.error:
            reason, _, fix = inspection.error.partition("; fix: ")
            reason = reason.replace(printable(dataset.root / path), "").strip()
            found.setdefault((reason, fix), []).append(index)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _check_readable(dataset: ImageDataset, inspections: Sequence[Inspection]) -> list[Finding]:
    found = unreadable_reasons(dataset, inspections)
    reasons = "; ".join(f"{len(own)}: {reason}" if len(found) > 1 else reason for (reason, _), own in found.items())
    fixes = "; ".join(dict.fromkeys(fix or "replace or remove them" for _, fix in found))
    indices = [index for own in found.values() for index in own]
    return [_about("unreadable", 3, f"cannot be read ({reasons})", fixes, indices, indices)]


def _check_duplicates(
    dataset: ImageDataset,
    inspections: Sequence[Inspection],
    found: Duplicates,
    similar: list[list[int]],
    split_of: dict[str, str],
) -> list[Finding]:
    labels, splits = dataset.labels, [split_of.get(path) for path in dataset.paths]
    ranks = [SPLITS.index(split) if split else 0 for split in splits]
    digests = [inspection.sha256 for inspection in inspections]
    groups, crowded = _set_crowds_apart(found, labels, digests)
    groups = [_test_copies_first(group, digests, ranks) for group in groups]
    across, repeated = _redundant(groups, found.mirrored, labels, digests)
    mixed = [group for group in groups if not across.isdisjoint(group)]  # guard: D27 labels
    flipped = [group for group in groups if group not in mixed and len({labels[i] for i in group}) > 1]
    related = found.groups + similar
    leaking = [group for group in related if len({splits[i] for i in group} - {None}) > 1]  # guard: D27 splits
    copied = [group for group in exact_duplicates(inspections) if len({labels[i] for i in group}) == 1]
    saved_again = [group for group in groups if len({digests[i] for i in group}) > 1]
    near = [group for group in saved_again if group not in mixed and group not in flipped]
    alike = join_groups(found.look_alikes + crowded, [""] * len(dataset))
    if not crowded and sum(map(len, alike)) < MANY_ALIKE:
        alike = []
    one = "the exclude list keeps the largest or first copy of each: look whether that is in its true class"
    whole = "the exclude list keeps the copies in the last of these splits"
    sides = "if left and right are different classes, train with --mirror no; else keep each in its true class only"
    apart = "split with --groups duplicates, so that no copy of a training photo is in the test"
    series = "none is excluded; keep photos of one scene or object in one split with --groups FILE"
    are = "picture is", "pictures are"
    titles = {
        "across_classes": f"{plural(mixed, *are)} in several classes",
        "across_splits": f"{plural(leaking, *are)} in several splits: the test result is too good",
        "mirrored": f"{plural(flipped, *are)} mirrored in another class",
        "exact": f"{plural(copied, 'photo occurs', 'photos occur')} more than once, byte for byte",
        "near": f"{plural(near, 'picture occurs', 'pictures occur')} more than once, saved again, scaled or mirrored",
        "features": f"{plural(similar, 'group of photos has', 'groups of photos have')} similar features: crops, edits "
        "or one object",
        "alike": f"{plural(sum(map(len, alike)), 'photo looks', 'photos look')} alike but differ, such as frames of a "
        "video",
    }
    redundant = across | repeated
    in_mixed = [i for group in mixed for i in group if i in redundant]
    in_earlier_split = [i for group in groups for i in _leaked(group, redundant, labels, ranks)]
    in_copied = [i for group in copied for i in group if i in repeated]
    return [
        Finding("duplicates_across_classes", 3, titles["across_classes"], one, mixed, in_mixed),
        Finding("duplicates_across_splits", 3, titles["across_splits"], whole, leaking, in_earlier_split),
        Finding("mirrored_across_classes", 2, titles["mirrored"], sides, flipped),
        Finding("exact_duplicates", 2, titles["exact"], "remove the copies", copied, in_copied),
        Finding("near_duplicates", 2, titles["near"], apart, near),
        Finding("similar_features", 2, titles["features"], series, similar),
        Finding("look_alikes", 2, titles["alike"], series, alike),
    ]


def _set_crowds_apart(
    found: Duplicates, labels: Sequence[int], digests: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of duplicates, with those that are too many for copies reduced to byte-identical ones, and the latter."""
    several = [group for group in found.groups if len({digests[i] for i in group}) > 1]
    crowds = [group for group in several if len({digests[i] for i in group}) > LARGE_GROUP]
    mixed = [group for group in several if len({labels[i] for i in group if i not in found.mirrored}) > 1]
    if sum(map(len, mixed)) > max(MANY_ALIKE, MANY_ACROSS * len(labels)):
        crowds += [group for group in mixed if group not in crowds]
    groups = [group for group in found.groups if group not in crowds]
    for crowd in crowds:
        by_digest: dict[str, list[int]] = {}
        for index in crowd:
            by_digest.setdefault(digests[index], []).append(index)
        groups += [group for group in by_digest.values() if len(group) > 1]
    return groups, crowds


def _test_copies_first(group: Sequence[int], digests: Sequence[str], ranks: Sequence[int]) -> list[int]:
    """A group with byte-identical copies beside each other, those of later splits first."""
    place = {digests[index]: number for number, index in reversed(list(enumerate(group)))}
    return sorted(group, key=lambda index: (place[digests[index]], -ranks[index]))


def _leaked(group: Sequence[int], redundant: Collection[int], labels: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Images of a group that have a copy of their class in a later split: train, val, test."""
    last: dict[int, int] = {}
    for index in group:
        if index not in redundant:
            last[labels[index]] = max(ranks[index], last.get(labels[index], 0))
    return [index for index in group if ranks[index] < last.get(labels[index], 0)]


def _redundant(
    groups: list[list[int]], mirrored: frozenset[int], labels: Sequence[int], digests: Sequence[str]
) -> tuple[set[int], set[int]]:
    """Copies in another class, and byte-identical copies in one class. What each is a copy of is in neither."""
    across, repeated = set(), set()
    for first, *others in groups:  # guard: D27 kept
        kept = {digests[first]: labels[first]}
        for index in others:
            own, digest = labels[index], digests[index]
            # A mirror image may rightly be in another class, such as left hands and right hands.
            if own != kept.get(digest, own if index in mirrored else labels[first]):
                across.add(index)
            elif digest in kept:
                repeated.add(index)
            else:
                kept[digest] = own
    return across, repeated


def _check_appearance(dataset: ImageDataset, inspections: Sequence[Inspection]) -> list[Finding]:
    good = [(i, inspection) for i, inspection in enumerate(inspections) if not inspection.error]
    median = float(np.median([inspection.sharpness for _, inspection in good])) if good else 0.0

    def where(test: Callable[[Inspection], bool]) -> list[int]:
        return [i for i, inspection in good if test(inspection)]

    blank = where(lambda x: x.contrast < BLANK_CONTRAST)
    gray = where(lambda x: x.colorfulness < GRAY_COLORFULNESS and x.contrast >= BLANK_CONTRAST)
    if len(gray) >= len(good) / 2:  # a dataset of gray images
        gray = []
    suffixes = {kind: tuple(text.split()) for kind, text in SUFFIXES.items()}
    jpeg = suffixes["JPEG"]  # MPO is one
    other = [i for i, x in good if not dataset.paths[i].lower().endswith(suffixes.get(x.format, jpeg))]
    blurred = where(lambda x: x.contrast >= BLANK_CONTRAST and x.sharpness < BLURRED_FRACTION * median)
    strips = where(lambda x: max(x.width, x.height) > MAX_ASPECT * min(x.width, x.height))
    tiny = where(lambda x: min(x.width, x.height) < MIN_SIDE)
    frames = where(lambda x: x.frames > 1)
    look, fine = "look at them in the gallery", "nothing: the content decides"
    return [
        _about("blank", 2, "show nothing", "remove them", blank, blank),
        _about("tiny", 2, f"are smaller than {MIN_SIDE} pixels", look, tiny),
        _about("odd_aspect", 2, f"are longer than {MAX_ASPECT:g}:1", "crop them", strips),
        _about("blurred", 1, "are far less sharp than the others", look, blurred),
        _about("gray", 1, "are gray among color photos", look, gray),
        _about("other_format", 1, "have another format than the suffix", fine, other),
        _about("alpha", 1, "are partly transparent", "nothing: shown on white", where(lambda x: x.alpha)),
        *_check_values(dataset, inspections),
        _about("cmyk", 1, "are in print colors", "nothing: converted to RGB", where(lambda x: x.mode == "CMYK")),
        _about("several_frames", 1, "hold several pictures", "nothing: the first one is used", frames),
    ]


def _check_values(dataset: ImageDataset, inspections: Sequence[Inspection]) -> list[Finding]:
    """What the images of more than 8 bits hold, and which of them become dark in the range of all."""
    found = range_of_set([inspection.values for inspection in inspections])
    if not found:
        return []
    low, high = found
    deep = [i for i, x in enumerate(inspections) if x.values.kind]
    dark = [i for i in deep if inspections[i].values.largest - low < DARK_FRACTION * (high - low)]
    kinds = {inspections[i].values.kind: printable(dataset.paths[i], 60) for i in reversed(deep)}
    if len(kinds) > 1:
        what = f"pixels are integers in some photos and floats in others: {kinds['int']} and {kinds['float']}"
        return [Finding("mixed_values", 3, what, "save all of them in one form, such as 16-bit PNG")]
    largest = max(inspections[i].values.largest for i in deep)
    what = f"have more than 8 bits; as the largest value is {largest:g}, {describe(found)} becomes 0 .. 255"
    dim = f"have no value above {DARK_FRACTION:.0%} of {describe(found)}, the range of all: nearly black"
    same = "save all photos with the same largest value, unless they are truly dark"
    return [
        _about("deep", 1, what, "nothing: the range is stored with the model", deep),
        _about("dark_values", 2, dim, same, dark),
    ]


def _check_classes(dataset: ImageDataset, inspections: Sequence[Inspection]) -> list[Finding]:
    counts = Counter(label for label, x in zip(dataset.labels, inspections, strict=True) if not x.error)
    names = [printable(name, 60) for name in dataset.classes]
    found = []
    empty = [name for label, name in enumerate(names) if not counts[label]]
    if empty:
        what = f"no readable photo in: {', '.join(empty)}"
        found.append(Finding("no_readable_image", 3, what, "add photos or remove these classes"))
    few = [f"{name} ({counts[label]})" for label, name in enumerate(names) if 0 < counts[label] < FEW_IMAGES]
    if few:
        what = f"fewer than {FEW_IMAGES} photos in: {', '.join(few)}"
        todo = (
            f"add photos, or leave a class out with --exclude {CLASS_MARK}NAME: a test on so few is hardly meaningful"
        )
        found.append(Finding("few_images", 2, what, todo))
    rarest, commonest = min(counts.values(), default=0), max(counts.values(), default=0)
    if rarest and commonest >= IMBALANCE * rarest:
        what = f"classes are imbalanced: from {rarest} to {commonest} photos"
        todo = "add photos of the rare ones, or train with balanced class weights (they are off by default)"
        found.append(Finding("imbalanced", 1, what, todo))
    return found


def _about(kind: str, severity: int, what: str, todo: str, indices: list[int], excluded: Sequence[int] = ()) -> Finding:
    first, _, rest = what.partition(" ")
    subject = plural(indices, f"photo {SINGULAR.get(first, first)}", f"photos {first}")
    todo = todo.replace("them", "it") if len(indices) == 1 else todo
    return Finding(kind, severity, f"{subject} {rest}", todo, [[i] for i in indices], list(excluded))
