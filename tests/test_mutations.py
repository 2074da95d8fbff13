"""Every marker in the source has one row in tests/mutations.toml, and every row its marker and its test.

`tests/mutations.py`, which is run by hand, shows that the tests fail under the mutations.
"""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
spec = importlib.util.spec_from_file_location("mutations", TESTS / "mutations.py")
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
sys.modules["mutations"] = mutations  # for its dataclass
spec.loader.exec_module(mutations)

MUTATIONS = mutations.read_mutations()


def test_markers_and_rows_match() -> None:
    assert Counter(name for name, _, _ in mutations.find_markers()) == Counter(m.marker for m in MUTATIONS)
    for path in (TESTS.parent / "flowers_torch").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "# guard" not in line or mutations.MARKER.match(line), f"not a valid marker: {line}"


def test_each_mutation_changes_its_file_into_valid_python() -> None:
    rows = {m.marker: m for m in MUTATIONS}
    for name, path, line in mutations.find_markers():
        source = (TESTS.parent / path).read_text(encoding="utf-8")
        mutated = mutations.mutate(source, line, rows[name].code)
        assert mutated != source, name
        compile(mutated, f"{path} for {name}", "exec")


def test_each_row_names_one_test() -> None:
    tests = mutations.find_tests()
    assert {m.marker: tests.get(m.test) for m in MUTATIONS if len(tests.get(m.test, [])) != 1} == {}


def test_every_data_fault_has_a_row() -> None:
    assert {m.fault for m in MUTATIONS} >= {f"D{number:02d}" for number in range(1, 40)}


def test_the_page_shows_the_table() -> None:
    assert mutations.table(MUTATIONS) in (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "line", "code", "expected"),
    [
        ("if a:\n    b()\n", 1, (), "if False:\n    b()\n"),
        ("if a:\n    b()\nelif c(\n    d\n):\n    e()\n", 3, (), "if a:\n    b()\nelif False:\n    e()\n"),
        (
            "try:\n    a()\nexcept E as error:\n    b()\n",
            3,
            (),
            "try:\n    a()\nexcept () as error:\n    b()\n",
        ),
        ('text = "é"; b()\n', 1, (), "pass; b()\n"),
        ("raise Error(\n    1\n)\n", 1, (), "pass\n"),
        ("for x in a[2:]:\n    b()\n", 1, ("[2:]", ""), "for x in a:\n    b()\n"),
        (
            "a = [x\n for x in y\n if x  # guard: Z1\n]\n",
            3,
            (),
            "a = [x\n for x in y\n if False  # guard: Z1\n]\n",
        ),
        ("a = {\n  1: 2,  # guard: Z1\n  3: 4,\n}\n", 2, (), "a = {\n    # guard: Z1\n  3: 4,\n}\n"),
        ("a()\n", 1, ("b(); {code}",), "b(); a()\n"),
    ],
)
def test_what_a_mutation_replaces(source: str, line: int, code: tuple[str, ...], expected: str) -> None:
    assert mutations.mutate(source, line, code) == expected


def test_a_missing_piece_is_an_error() -> None:
    with pytest.raises(ValueError, match="not exactly once"):
        mutations.mutate("a()\n", 1, ("b", "c"))
