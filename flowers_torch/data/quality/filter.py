"""Which photos go into training: all that can be read and are not in quarantine, with twins kept together."""

import dataclasses
from pathlib import Path

from flowers_torch.data.quality.report import Finding, audit, leave_out, read_quarantine
from flowers_torch.data.quality.scan import inspect_photos
from flowers_torch.data.sources.folders import Photos
from flowers_torch.data.sources.tables import read_groups
from flowers_torch.errors import DataError, printable

HARMFUL = 2  # damage from which on a finding is worth a line in the log of training


@dataclasses.dataclass(frozen=True)
class Admission:
    """What the check before training came to.

    Attributes:
        photos: Those that training may use.
        twins: Positions of photos that show the same picture, to be kept in one part; empty unless asked for.
        bad: Path to reason of those that were left out because they cannot be read.
        remarks: Harmful findings, worst first, one line each.
    """

    photos: Photos
    twins: list[list[int]]
    bad: dict[str, str]
    remarks: list[str]


def admit(
    photos: Photos,
    quarantine: str = "",
    groups: str = "twins",
    skip_bad: bool = False,
    cache: Path | None = None,
) -> Admission:
    """Decodes every photo once, before anything is downloaded or trained; what is known is not read again.

    Args:
        photos: As found.
        quarantine: `quarantine.csv` of a check, or empty.
        groups: Which photos stay in one part of the split: "twins", "none", or a table of file,group.
        skip_bad: Leave out photos that cannot be read, instead of stopping.
        cache: Where inspections are remembered; `files.cache_folder()` if None.

    Raises:
        DataError: unreadable photos (unless skipped), or no photo left of a class.
    """
    if quarantine:
        photos = leave_out(photos, read_quarantine(Path(quarantine).expanduser()))
    inspections = inspect_photos(photos, cache=cache)
    bad = {p: seen.error for p, seen in zip(photos.paths, inspections, strict=True) if seen.error}
    if bad and not skip_bad:
        first = next(iter(bad.values())).split("; fix: ")[0]
        raise DataError(
            f"{len(bad)} of {len(photos)} photos cannot be used; the first: {first}",
            "replace them, or leave them out with --skip-bad",
        )
    if bad:
        photos = leave_out(photos, bad)
        inspections = [seen for seen in inspections if not seen.error]
    if groups not in ("twins", "none"):
        photos = dataclasses.replace(photos, groups=read_groups(Path(groups).expanduser(), photos))
    result = audit(photos, inspections)
    remarks = [
        _remark(photos, finding)
        for finding in result.findings
        if finding.damage >= HARMFUL or finding.kind == "several_frames"  # guard: D19
    ]
    if bad:
        remarks.insert(0, f"{len(bad)} photos cannot be used and are left out: {_first(bad)}")
    return Admission(photos, result.twins if groups == "twins" else [], bad, remarks)


def _remark(photos: Photos, finding: Finding) -> str:
    """What was found, with the first of the pairs where it is about twins."""
    pairs = [group for group in finding.groups if len(group) > 1]
    if not pairs:
        return finding.what
    return f"{finding.what} (first: {' = '.join(printable(photos.paths[i], 60) for i in pairs[0])})"


def _first(bad: dict[str, str], most: int = 3) -> str:
    shown = ", ".join(printable(path, 60) for path in list(bad)[:most])
    return shown if len(bad) <= most else f"{shown} and {len(bad) - most} more"
