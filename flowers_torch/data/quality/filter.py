"""Selection of the images to train on: readable, not excluded, with duplicates kept in one split."""

import dataclasses
from collections.abc import Sequence

from flowers_torch.data.dataset import CLASS_MARK, COLUMN_MARK, ImageDataset, parse_exclude
from flowers_torch.data.mirrored_names import mirrored_classes
from flowers_torch.data.quality.duplicates import Duplicates, near_duplicates
from flowers_torch.data.quality.exclude import drop_images, read_exclude_list
from flowers_torch.data.quality.report import check_quality, unreadable_reasons
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.rows import listed
from flowers_torch.data.sources.tables import read_groups
from flowers_torch.data.spread import Spread, alone
from flowers_torch.data.value_range import Range, range_of_set
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.system import expand_home

MIN_SEVERITY = 2  # of findings that training warns of


@dataclasses.dataclass(frozen=True)
class FilteredDataset:
    """A dataset after the checks before training."""

    dataset: ImageDataset
    duplicates: list[list[int]]  # groups of positions that must stay in one split; empty unless requested
    unreadable: dict[str, str]  # path to reason of the images that were left out
    warnings: list[str]  # findings of some severity, worst first, one line each
    found: Duplicates  # all that was found, requested or not
    value_range: Range = ()  # that images of more than 8 bits use


def filter_images(
    dataset: ImageDataset,
    exclude: str = "",
    groups: str = "duplicates",
    skip_bad: bool = False,
    mirror: str = "auto",
    spread: Spread = alone,
) -> FilteredDataset:
    """Decodes every image once, before anything is downloaded or trained. Cached inspections are reused.

    `exclude` is an exclude list and classes, as `parse_exclude` takes them; `groups` is "duplicates", "none" or
    the path of a table file,group; with `column:NAME`, the source has set the groups. `mirror` is as in
    `copies_may_be_mirrored`, `spread` as in `inspect_images`. Unreadable images (unless `skip_bad`) and a class without
    any image left are a `DataError`.
    """
    path, classes = parse_exclude(exclude)
    excluded = read_exclude_list(expand_home(path)) if path else {}
    if excluded or classes:
        dataset = drop_images(dataset, excluded | {f"{CLASS_MARK}{name}": "by name" for name in classes})
    inspections = inspect_images(dataset, spread=spread)
    bad = {path: found.error for path, found in zip(dataset.paths, inspections, strict=True) if found.error}
    if bad and not skip_bad:
        first = next(iter(bad.values())).split("; fix: ")[0]
        (reason, fix), own = next(iter(unreadable_reasons(dataset, inspections).items()))
        same = f"; {len(own)} of them: {reason}" if len(own) > 1 else ""
        what = f"{len(bad)} of {plural(dataset, 'photo')} cannot be used; the first: {first}{same}"
        raise DataError(what, f"{fix or 'replace them'}, or leave them out with --skip-bad")
    if bad:
        dataset = drop_images(dataset, bad)
        inspections = [inspection for inspection in inspections if not inspection.error]
    with_duplicates = groups == "duplicates" or groups.startswith(COLUMN_MARK)
    dataset = with_groups(dataset, groups)
    found = near_duplicates(dataset, inspections, copies_may_be_mirrored(mirror, dataset.classes))
    report = check_quality(dataset, inspections, duplicates=found)
    warnings = []
    for finding in report.findings:
        if finding.kind == "mixed_values":  # guard: D15 mixed
            raise DataError(finding.what, finding.todo)
        if finding.severity >= MIN_SEVERITY or finding.kind in ("several_frames", "deep"):  # guard: D19
            pairs = [group for group in finding.groups if len(group) > 1]
            first = " = ".join(printable(dataset.paths[i], 60) for i in pairs[0]) if pairs else ""
            warnings.append(f"{finding.what} (first: {first})" if pairs else finding.what)
    if bad:
        count = plural(bad, "photo cannot be used and is", "photos cannot be used and are")
        warnings.insert(0, f"{count} left out: {listed(list(bad), limit=3)}")
    value_range = range_of_set([inspection.values for inspection in inspections])
    requested = found.groups if with_duplicates else []
    return FilteredDataset(dataset, requested, bad, warnings, found, value_range)


def with_groups(dataset: ImageDataset, groups: str) -> ImageDataset:
    """The dataset with the groups of a table file,group; other values of `groups` change nothing."""
    if groups in ("", "none", "duplicates") or groups.startswith(COLUMN_MARK):
        return dataset
    return dataclasses.replace(dataset, groups=read_groups(expand_home(groups), dataset))


def copies_may_be_mirrored(mirror: str, classes: Sequence[str]) -> bool:
    """Whether a mirror image counts as a copy. With "auto" it does unless classes are left and right by name."""
    return mirror == "yes" or (mirror == "auto" and mirrored_classes(classes) is None)
