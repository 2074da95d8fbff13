"""`gallery.html`: the findings of a check with their photos, readable offline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.data.images import load_image
from flowers_torch.data.quality.report import QualityReport
from flowers_torch.data.value_range import range_of
from flowers_torch.errors import DataError, printable
from flowers_torch.files.atomic import write_text
from flowers_torch.report.image_sections import data_uri
from flowers_torch.report.templating import render

SIDE = 160  # of a thumbnail, pixels
GROUPS = 200  # shown of a finding; check.json lists all
PER_GROUP = 12  # photos shown of a group, such as of look-alikes


def write_gallery(path: Path, result: QualityReport) -> None:
    """Writes the to-do list, then the photos of each finding, then the classes."""
    sections = [(finding, [_group(result, group) for group in finding.groups[:GROUPS]]) for finding in result.findings]
    counts = list(zip(result.dataset.classes, result.dataset.counts(), strict=True))
    values = {"photos": result.dataset, "sections": sections, "class_counts": counts}
    write_text(path, render("gallery.html.jinja", values))


def _group(result: QualityReport, group: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
    """The figures of a group, and the number of its other photos."""
    return [_figure(result, index) for index in group[:PER_GROUP]], max(0, len(group) - PER_GROUP)


def _figure(result: QualityReport, index: int) -> dict[str, Any]:
    photos, inspection = result.dataset, result.inspections[index]
    error, src, path = inspection.error, "", photos.root / photos.paths[index]
    if not error:
        try:
            src = data_uri(load_image(path, at_least=SIDE, value_range=range_of(inspection.values)), SIDE, 80)
        except DataError as gone:  # since the inspection
            error = str(gone)
    error = error.partition("; fix: ")[0].replace(printable(path), "").strip()  # the caption names the file
    label = photos.classes[photos.labels[index]]
    return {"src": src, "error": error, "file": photos.paths[index], "label": label, "inspection": inspection}
