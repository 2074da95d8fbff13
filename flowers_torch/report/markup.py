"""Text from strangers, made safe to stand in HTML and SVG, and numbers as people read them."""

import html
import json
from typing import Any

from flowers_torch.errors import printable

MOST_COMMAND = 10_000  # characters: a command that is cut short does not run


def text(value: object, limit: int = 200) -> str:
    """A name or message from outside as HTML text or attribute value: escaped, printable, bounded."""
    return html.escape(printable(value, limit))


def preformatted(value: str) -> str:
    """Text whose lines stay lines."""
    return f"<pre>{chr(10).join(text(line, 400) for line in value.splitlines())}</pre>"


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element whatever its strings hold."""
    dumped = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def percent(share: float) -> str:
    """0.9926 as 99.3%; what is not quite 100% is never called so."""
    rounded = f"{share:.1%}"
    if rounded == "100.0%":
        return "100%" if share == 1 else "99.9%"
    return rounded


def plural(count: int, name: str) -> str:
    """3, "photo" as "3 photos"."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}{'es' if name.endswith('s') else 's'}"


def table(header: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """A table of cells that are HTML already; the last `numbers` columns are aligned right."""
    first = len(header) - numbers

    def cells(values: list[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if i >= first else ''}>{value}</{tag}>" for i, value in enumerate(values)
        )

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'
