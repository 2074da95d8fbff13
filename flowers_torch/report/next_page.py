"""`next.html`: unlabeled photos to label, on one page that works offline and saves the labels as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.data.images import load_image
from flowers_torch.data.value_range import Range
from flowers_torch.errors import DataError
from flowers_torch.files.atomic import write_text
from flowers_torch.report.image_sections import data_uri
from flowers_torch.report.templating import render

SIDE = 256  # of a thumbnail, pixels
SMALL_SIDE = 160  # with more photos than MANY
MANY = 150


def write_next_page(
    path: Path, rows: Sequence[dict[str, Any]], values: dict[str, Any], value_range: Range = ()
) -> None:
    """Writes the page.

    Args:
        path: Of the page.
        rows: `NextImage.to_dict` of each photo, the most useful first.
        values: Of the template: `run`, `classes`, `candidates`, `command`.
        value_range: As of `load_image`.
    """
    side = SIDE if len(rows) <= MANY else SMALL_SIDE
    images = [row | {"src": _thumbnail(Path(row["file"]), side, value_range), "id": i} for i, row in enumerate(rows, 1)]
    # What the script writes into the table are the names themselves, not their printable form.
    listed = [{"file": Path(row["file"]).as_posix()} for row in rows]
    write_text(path, render("next.html.jinja", values | {"images": images, "listed": listed}))


def _thumbnail(file: Path, side: int, value_range: Range) -> str:
    try:
        return data_uri(load_image(file, at_least=side, value_range=value_range), side, 80)
    except DataError:  # changed since the photos were inspected
        return ""
