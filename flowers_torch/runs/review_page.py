"""The page on which a person decides on label issues."""

import webbrowser
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from flowers_torch.data.value_range import Range
from flowers_torch.deploy.local_page import LocalPage, picture_maker
from flowers_torch.errors import UsageError
from flowers_torch.report.templating import render
from flowers_torch.runs.label_review import LabelReview


def review_page(review: LabelReview, value_range: Range = (), port: int = 0) -> LocalPage:
    """A server of the page; it does not answer yet.

    Raises:
        ResourceError: the port is in use.
    """
    templates = files("flowers_torch.report") / "templates"
    style = "".join((templates / name).read_text(encoding="utf-8") for name in ("base.css", "review.css"))
    page = render("review.html.jinja", {"data": review.dataset.name, "run": review.run_folder.name})
    assets = {
        "": (page.encode(), "text/html; charset=utf-8"),
        "review.css": (style.encode(), "text/css; charset=utf-8"),
        "review.js": ((templates / "review.js").read_bytes(), "text/javascript; charset=utf-8"),
    }
    assets["icon.svg"] = ((files("flowers_torch.deploy") / "templates/icon.svg").read_bytes(), "image/svg+xml")
    values: dict[str, Callable[..., Any]] = {"state": review.state, "similar/": review.similar}
    picture = picture_maker(review.file, value_range)

    def decide(request: dict[str, Any]) -> dict[str, Any]:
        number, label = _number(request.get("issue")), _number(request.get("label"))
        if request.get("action") == "undo":
            return review.undo(number)
        if number is None:
            raise UsageError("the request names no label issue", "load the page again")
        return review.decide(number, str(request.get("action")), label)

    return LocalPage(assets, values, len(review.dataset), picture, decide, port)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def open_browser(url: str) -> bool:
    """Opens the system's browser if it has a window of its own; a text browser would take over the terminal."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    if type(browser) is webbrowser.GenericBrowser:
        return False
    return browser.open(url)
