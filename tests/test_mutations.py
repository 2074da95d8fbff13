"""The list of mutations stays true: each still fits the source, its test is there, and the page shows it.

That the tests do fail under the mutations is seen by running `tests/mutations.py` itself.
"""

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
spec = importlib.util.spec_from_file_location("mutations", TESTS / "mutations.py")
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: f"{m.fault} {m.protection}")
def test_a_mutation_fits(mutation) -> None:
    source = (TESTS.parent / "flowers_torch" / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1 and mutation.new != mutation.old
    compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    file, _, name = mutation.test.partition("::")
    assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8")


def test_every_fault_of_the_data_has_one() -> None:
    assert {m.fault for m in mutations.MUTATIONS} >= {f"D{number:02d}" for number in range(1, 40)}


def test_the_page_shows_the_table() -> None:
    page = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
    assert mutations.table() in page
