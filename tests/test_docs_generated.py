"""The generated pages of docs/ are up to date, and complete."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

import flowers_torch
from flowers_torch.config import Config, Stage

DOCS = Path(__file__).parent.parent / "docs"
SPEC = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
assert SPEC and SPEC.loader
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert text == generate.PAGES[name](), f"docs/{name} is out of date: run python docs/generate.py"


@pytest.mark.parametrize("kind", [Config, Stage])
def test_every_option_has_a_default_and_a_meaning(kind: type) -> None:
    title = "## Run\n" if kind is Config else "## Stage\n"
    section = generate.options_page().split(title)[1].split("\n## ")[0]
    listed = dict(re.findall(r"^- `(\w+)(?: = (.+?))?`: .", section, re.M))
    fields = dataclasses.fields(kind)
    assert list(listed) == [field.name for field in fields]
    assert all(listed[field.name] for field in fields if field.default is not dataclasses.MISSING)


def test_every_public_name_is_in_the_reference() -> None:
    page = generate.python_page()
    for name in set(flowers_torch.__all__) - {"__version__"}:
        entry = page.split(f"\n### {name}\n")[1].split("\n### ")[0]
        assert f"{name}(" in entry and entry.split("```")[2].strip(), f"{name} has no docstring"


def test_lines_of_generated_pages_are_short() -> None:
    for name in ("options.md", "python.md"):
        assert max(map(len, (DOCS / name).read_text(encoding="utf-8").splitlines())) <= 120
