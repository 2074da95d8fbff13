"""Tests that cannot run on every system say so by one mark."""

import ast
import re
from pathlib import Path

import pytest
from system_needs import NEEDS

TESTS = Path(__file__).parent


def marks(nodes: list[ast.expr]) -> set[str]:
    """Arguments of the `needs` marks among decorators, or in the value of `pytestmark`."""
    calls = [call for node in nodes for call in ast.walk(node) if isinstance(call, ast.Call)]
    found = [call.args for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "needs"]
    return {argument.value for arguments in found for argument in arguments if isinstance(argument, ast.Constant)}  # type: ignore[misc]


def unmarked(text: str) -> list[str]:
    """Tests in a module whose code needs what no mark names."""
    tree, missing = ast.parse(text), []
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    module = marks([node.value for node in assigned if getattr(node.targets[0], "id", "") == "pytestmark"])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            given, code = module | marks(node.decorator_list), ast.unparse(node)
            needed = {name for name, (_, _, pattern) in NEEDS.items() if re.search(pattern, code)}
            if not (needed <= given or "linux" in given or needed <= {"modes"} and "no_root" in given):
                missing.append(f"{node.name}: {', '.join(sorted(needed - given))}")
    return missing


def test_every_test_names_what_it_needs() -> None:
    own = ("test_system_needs.py", "test_architecture.py")
    found = {path: unmarked(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py")}
    assert not {str(path): names for path, names in found.items() if names and path.name not in own}


def test_modules_of_one_system_are_imported_where_they_are_used() -> None:
    """At the top they would end the collection elsewhere."""
    for path in [*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py")]:
        found = re.findall(
            r"^(?:import|from) (?:resource|fcntl|pwd|grp|msvcrt)\b", path.read_text("utf-8"), re.MULTILINE
        )
        assert not found, path


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_mark_is_found(name: str) -> None:
    lines = {"linux": "os.fork()", "signals": "signal.SIGKILL", "links": "a.symlink_to(b)", "pipes": "os.mkfifo('a')"}
    lines |= {"names": "'needs names'", "case": "'needs case'"}
    lines |= {"modes": "a.chmod(0)", "no_root": "'root reads everything'", "root": "'needs root'"}
    lines |= {"node": "node_output('1')"}
    test = f"def test_it():\n    {lines[name]}\n"
    assert unmarked(test) == [f"test_it: {name}"]
    assert not unmarked(f"@pytest.mark.needs({name!r})\n{test}")
    assert not unmarked(f"pytestmark = [pytest.mark.slow, pytest.mark.needs({name!r})]\n{test}")
