"""What the served and the offline page share: names, thresholds, the table, one head and one style sheet."""

import csv
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import flowers_torch
from flowers_torch.deploy.page_model import page_model
from flowers_torch.errors import UsageError
from flowers_torch.files.atomic import safe_cell
from flowers_torch.files.reading import plain_cell
from flowers_torch.report.templating import render

PACKAGE = Path(flowers_torch.__file__).parent
HOSTILE = ("</script><img src=x onerror=window.hacked=1>", "\u202etulip\x1b[31m", "Лютик, едкий", '"&<!--')
CURVE = [[0.9, 60, 0], [0.5, 90, 4], [0.0, 100, 9]]
SETS = {"images": 39, "quantiles": [[0.2, 1], [0.4, 2], [0.6, 4]]}


def node_output(script: str) -> str:
    done = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True, encoding="utf-8")
    return done.stdout


@pytest.mark.parametrize("page", ["serve_page", "offline_page"])
def test_hostile_names_are_text(page: str) -> None:
    model = page_model(HOSTILE, {}) | {"name": HOSTILE[0], "arch": HOSTILE[0], "license": HOSTILE[0], "size": "1 MB"}
    html = render(f"{page}.html.jinja", {"model": model, "policy": "", "scripts": ""}, "flowers_torch.deploy")
    assert "<img src=x" not in html and "\u202e" not in html and "\x1b" not in html and "<!--" not in html
    (held,) = re.findall(r'id="model">(.*?)</script>', html)
    assert json.loads(held)["classes"] == [HOSTILE[0], "\\u202etulip\\x1b[31m", *HOSTILE[2:]]


def test_the_lowest_rate_that_can_be_promised_is_selected() -> None:
    model = page_model("ab", {"curve": CURVE, "sets": SETS})
    assert [(each["rate"], each["probability"]) for each in model["rates"]] == [
        (0.02, 0.9), (0.05, 0.9), (0.1, 0.0)
    ]  # fmt: skip
    assert model["rate"] == 0.02 and "0 of 60 wrong in validation" in model["rates"][0]["text"]
    assert model["coverages"] == [
        {"coverage": 0.8, "probability": 0.6}, {"coverage": 0.9, "probability": 0.6},
        {"coverage": 0.95, "probability": 0.4},
    ]  # fmt: skip
    assert model["coverage"] is None


def test_a_chosen_rate_and_coverage_stand_among_the_others() -> None:
    model = page_model("ab", {"curve": CURVE, "sets": SETS}, max_error=0.03, coverage=0.97)
    assert [each["rate"] for each in model["rates"]] == [0.02, 0.03, 0.05, 0.1] and model["rate"] == 0.03
    assert model["coverages"][-1] == {"coverage": 0.97, "probability": 0.2} and model["coverage"] == 0.97


def test_what_cannot_be_promised_is_not_offered() -> None:
    few = page_model("ab", {"curve": [[0.5, 3, 2]], "sets": {"images": 3, "quantiles": [[0.1, 1]]}})
    assert few["rates"] == few["coverages"] == [] and few["rate"] is None
    with pytest.raises(UsageError, match="has no risk-coverage curve"):
        page_model("ab", {}, max_error=0.02)
    with pytest.raises(UsageError, match="has no prediction sets"):
        page_model("ab", {}, coverage=0.9)


@pytest.mark.needs("node")
def test_the_table_is_escaped_as_every_table_of_the_package() -> None:
    cells = ["a, b", 'say "no"', "=1+1", "'=1", "-2.5", "+x", "@a", "-", "1e5", "Лютик", "two\nlines", "", " =1", "−1"]
    script = (PACKAGE / "report/templates/table.js").read_text(encoding="utf-8")
    text = node_output(f"{script}\nprocess.stdout.write(csv([{json.dumps(cells)}]))")
    (row,) = csv.reader(io.StringIO(text, newline=""))
    assert row == [safe_cell(cell) for cell in cells] and [plain_cell(cell) for cell in row] == cells


def test_all_pages_have_one_head_and_one_set_of_colors() -> None:
    templates = [path for path in PACKAGE.rglob("*.jinja") if path.name.endswith(".html.jinja")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in templates if path.parent.name == "templates"}
    bare = {name for name, text in texts.items() if "{% extends" not in text}
    assert bare == {"base.html.jinja", "macros.html.jinja"}
    assert [name for name, text in texts.items() if "<head>" in text] == ["base.html.jinja"]
    styles: dict[str, Any] = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.css")}
    assert [name for name, text in styles.items() if ":root" in text] == ["base.css"]
    everything = "".join([*styles.values(), *(path.read_text(encoding="utf-8") for path in templates)])
    used, defined = (set(re.findall(form, everything)) for form in (r"var\((--[\w-]+)", r"(--[\w-]+):"))
    assert "--accent" in used and used <= defined
