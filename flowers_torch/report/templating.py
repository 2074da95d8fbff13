"""Jinja2 templates with autoescape: what comes from outside is made printable first, then escaped."""

import functools
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from flowers_torch import __version__
from flowers_torch.errors import plural, printable
from flowers_torch.shell import command_line, repeat_command

LONGEST = 10_000  # characters of one value in a page
SHARED = "flowers_torch.report"  # where `base.html.jinja` and `base.css` are, which every page takes


def render(template: str, values: dict[str, Any], package: str = SHARED) -> Markup:
    """A filled template, safe to stand in another one; all but Markdown and Python is escaped."""
    return Markup(_environment(package).get_template(template).render(values))  # escaped by the template


@functools.cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, SHARED))]),
        autoescape=select_autoescape(disabled_extensions=("md.jinja", "py.jinja"), default=True),
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "plural": functools.partial(plural, form=","),
        "short": printable,
        "path": breakable,
        "code": code_spans,
    }
    environment.globals |= {"command_line": command_line, "repeat_command": repeat_command, "version": __version__}
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup | int | float) else printable(value, LONGEST)


def percent(fraction: float) -> str:
    """0.9926 as 99.3%; 100% only if exact."""
    return "100%" if fraction == 1 else f"{min(fraction, 0.999):.1%}"


def breakable(path: str, limit: int = 80) -> Markup:
    """A path that may continue on the next line after a slash."""
    return Markup("/<wbr>").join(Markup.escape(piece) for piece in printable(path, limit).split("/"))


def code_spans(text: str) -> Markup:
    """Text with Markdown's code spans, as HTML."""
    pieces = [Markup.escape(printable(piece, LONGEST)) for piece in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(pieces))
