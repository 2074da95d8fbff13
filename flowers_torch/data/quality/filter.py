"""Which photos go into training: all that can be read and are not in quarantine, with twins kept together."""

import dataclasses
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.report import Finding, check_quality, drop_images, read_exclude_list
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.tables import read_groups
from flowers_torch.errors import DataError, printable

MIN_SEVERITY = 2  # damage from which on a finding is worth a line in the log of training


@dataclasses.dataclass(frozen=True)
class FilteredDataset:
    """What the check before training came to.

    Attributes:
        photos: Those that training may use.
        twins: Positions of photos that show the same picture, to be kept in one part; empty unless asked for.
        bad: Path to reason of those that were left out because they cannot be read.
        remarks: Harmful findings, worst first, one line each.
    """

    photos: ImageDataset
    duplicates: list[list[int]]
    bad: dict[str, str]
    remarks: list[str]


def filter_images(
    photos: ImageDataset,
    exclude: str = "",
    groups: str = "duplicates",
    skip_bad: bool = False,
    cache: Path | None = None,
) -> FilteredDataset:
    """Decodes every photo once, before anything is downloaded or trained; what is known is not read again.

    Args:
        photos: As found.
        quarantine: `exclude.csv` of a check, or empty.
        groups: Which photos stay in one part of the split: "duplicates", "none", or a table of file,group.
        skip_bad: Leave out photos that cannot be read, instead of stopping.
        cache: Where inspections are remembered; `files.cache_folder()` if None.

    Raises:
        DataError: unreadable photos (unless skipped), or no photo left of a class.
    """
    if exclude:
        photos = drop_images(photos, read_exclude_list(Path(exclude).expanduser()))
    inspections = inspect_images(photos, cache=cache)
    bad = {p: seen.error for p, seen in zip(photos.paths, inspections, strict=True) if seen.error}
    if bad and not skip_bad:
        first = next(iter(bad.values())).split("; fix: ")[0]
        raise DataError(
            f"{len(bad)} of {len(photos)} photos cannot be used; the first: {first}",
            "replace them, or leave them out with --skip-bad",
        )
    if bad:
        photos = drop_images(photos, bad)
        inspections = [seen for seen in inspections if not seen.error]
    if groups not in ("duplicates", "none"):
        photos = dataclasses.replace(photos, groups=read_groups(Path(groups).expanduser(), photos))
    result = check_quality(photos, inspections)
    remarks = [
        _remark(photos, finding)
        for finding in result.findings
        if finding.severity >= MIN_SEVERITY or finding.kind == "several_frames"  # guard: D19
    ]
    if bad:
        remarks.insert(0, f"{len(bad)} photos cannot be used and are left out: {_first(bad)}")
    return FilteredDataset(photos, result.duplicates if groups == "duplicates" else [], bad, remarks)


def _remark(photos: ImageDataset, finding: Finding) -> str:
    """What was found, with the first of the pairs where it is about twins."""
    pairs = [group for group in finding.groups if len(group) > 1]
    if not pairs:
        return finding.what
    return f"{finding.what} (first: {' = '.join(printable(photos.paths[i], 60) for i in pairs[0])})"


def _first(bad: dict[str, str], most: int = 3) -> str:
    shown = ", ".join(printable(path, 60) for path in list(bad)[:most])
    return shown if len(bad) <= most else f"{shown} and {len(bad) - most} more"
