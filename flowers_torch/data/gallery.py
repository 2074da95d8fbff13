"""The findings of a check as one HTML page with the photos in it, readable offline."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from flowers_torch.data.audit import Audit, Finding
from flowers_torch.data.images import load_image
from flowers_torch.errors import DataError, printable
from flowers_torch.files import write_text

THUMBNAIL_SIDE = 160
MOST_GROUPS = 200  # of a finding; the rest is in the JSON
DAMAGE = {3: "spoils the result", 2: "harms the result", 1: "worth a look"}

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Check of {name}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
        color: #1c1c1c; background: #fff }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }}
.damage3 {{ color: #a40000 }} .damage2 {{ color: #8a4b00 }} .damage1 {{ color: #444 }}
.groups {{ display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start }}
.group {{ display: flex; gap: .4rem; padding: .4rem; border: 1px solid #ddd; border-radius: .4rem }}
figure {{ margin: 0; width: 10rem }} figcaption {{ font-size: .75rem; overflow-wrap: anywhere }}
img {{ max-width: 10rem; display: block }} .none {{ color: #a40000; font-size: .8rem }}
td, th {{ text-align: left; padding: .1rem 1rem .1rem 0 }}
</style></head><body>
<h1>Check of {name}</h1>
<p>{count} photos of {classes} classes.</p>
{todo}
{sections}
<h2>Classes</h2>
<table><tr><th>class</th><th>photos</th></tr>{rows}</table>
</body></html>
"""


def write_gallery(path: Path, result: Audit) -> None:
    """Writes the page: the to-do list, then the photos of each finding, then the classes."""
    photos = result.photos
    items = [
        f'<li class="damage{f.damage}"><a href="#{f.kind}{i}">{_text(f.what)}</a>: {_text(f.todo)}</li>'
        for i, f in enumerate(result.findings)
    ]
    page = PAGE.format(
        name=_text(photos.name),
        count=len(photos),
        classes=len(photos.classes),
        todo=f"<ol>{''.join(items)}</ol>" if items else "<p>Nothing was found.</p>",
        sections="".join(_section(result, f, i) for i, f in enumerate(result.findings)),
        rows="".join(
            f"<tr><td>{_text(name)}</td><td>{count}</td></tr>"
            for name, count in zip(photos.classes, photos.counts(), strict=True)
        ),
    )
    write_text(path, page)


def _section(result: Audit, finding: Finding, number: int) -> str:
    groups = "".join(
        f'<div class="group">{"".join(_figure(result, index) for index in group)}</div>'
        for group in finding.groups[:MOST_GROUPS]
    )
    more = len(finding.groups) - MOST_GROUPS
    rest = f"<p>and {more} more, all listed by <code>--json</code></p>" if more > 0 else ""
    return (
        f'<h2 id="{finding.kind}{number}" class="damage{finding.damage}">{_text(finding.what)}</h2>'
        f"<p>{DAMAGE[finding.damage]}; {_text(finding.todo)}</p>"
        f'<div class="groups">{groups}</div>{rest}'
    )


def _figure(result: Audit, index: int) -> str:
    photos, seen = result.photos, result.inspections[index]
    path = photos.paths[index]
    if seen.error:
        picture = f'<div class="none">{_text(seen.error)}</div>'
    else:
        picture = _thumbnail(photos.root / path)
    size = f"{seen.width}x{seen.height} {seen.format} {seen.mode}" if seen.width else ""
    label = photos.classes[photos.labels[index]]
    return f"<figure>{picture}<figcaption>{_text(path)}<br>{_text(label)} {_text(size)}</figcaption></figure>"


def _thumbnail(path: Path) -> str:
    try:
        image = load_image(path)
    except DataError as error:  # gone since it was inspected
        return f'<div class="none">{_text(error)}</div>'
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _text(value: object) -> str:
    return html.escape(printable(value, limit=400))
