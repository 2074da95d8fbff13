"""The layers of docs/architecture.md, limits on size, and calls that the package never makes."""

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowers_torch.runs.experiment import Experiment

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flowers_torch"
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_POINTS = {"__init__", "__main__"}
CONFIG_READERS = {"config_file", "runs", "tutorials", "api", "commands"}
TABLES: set[str] = set()  # files that may be longer than 350 lines because they are one table


def layers() -> list[str]:
    """Names in the table of docs/architecture.md. Each may import only those behind it."""
    section = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Layers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.M)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def owner(path: Path) -> str:
    """Folder or module directly below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_imports(path: Path) -> set[str]:
    """Folders and modules directly below the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("flowers_torch.")}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_page_names_every_folder_and_module() -> None:
    assert len(layers()) == len(set(layers()))
    assert set(layers()) == {owner(path) for path in FILES} - ENTRY_POINTS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_lower_layers(path: Path) -> None:
    order, name = layers(), owner(path)
    if name not in ENTRY_POINTS:
        lower = order[order.index(name) :]  # with the layer itself
        assert package_imports(path) <= set(lower)
    if package_imports(path) & {"config", "config_file"}:
        assert name in CONFIG_READERS


def test_folders_import_each_other_without_cycles() -> None:
    imports = {name: set() for name in layers()}  # type: dict[str, set[str]]
    for path in FILES:
        if owner(path) not in ENTRY_POINTS:
            imports[owner(path)] |= package_imports(path) - {owner(path)}
    while free := [name for name, others in imports.items() if not others & set(imports)]:
        for name in free:
            del imports[name]
    assert not imports


def test_package_imports_are_found() -> None:
    found = package_imports(PACKAGE / "runs/stage.py")
    assert {"training", "data", "models", "evaluation", "config"} <= found


def test_training_does_not_know_what_accelerates_it() -> None:
    for folder in ("data", "models", "training"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert "accelerate" not in package_imports(path)


@pytest.mark.parametrize("path", [*FILES, ROOT / "train.py", ROOT / "hubconf.py"], ids=lambda path: path.name)
def test_nothing_that_runs_foreign_code_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not modules & {"pickle", "dill", "shelve", "marshal", "*"}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name not in ("eval", "exec", "yaml.load", "os.system")
            assert not name.endswith(".extractall")
            assert given.get("allow_pickle", "False") == "False"
            assert given.get("shell", "False") == "False"
            if name == "torch.load":
                assert given["weights_only"] == "True"


def test_help_and_package_import_do_not_load_torch() -> None:
    code = "import sys; from flowers_torch import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_files_are_short() -> None:
    limits = {ROOT / "train.py": 50, PACKAGE / "runs/recipe.py": 200}
    for path in [*FILES, *limits]:
        name = str(path.relative_to(ROOT))
        assert name in TABLES or len(path.read_text(encoding="utf-8").splitlines()) <= limits.get(path, 350), name


def test_the_training_step_is_short() -> None:
    (step,) = (node for node in functions(PACKAGE / "training/step.py") if node.name == "train_step")
    first = step.body[1]  # behind the docstring
    assert step.end_lineno is not None and step.end_lineno - first.lineno + 1 <= 30


@pytest.mark.parametrize("path", sorted((PACKAGE / "runs").rglob("*.py")), ids=lambda path: path.name)
def test_functions_of_runs_are_short(path: Path) -> None:
    """At most 60 lines and 6 parameters, unless a comment above the function gives the reason."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in functions(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        has_reason = lines[first - 2].strip().startswith("#")
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        assert has_reason or (length <= 60 and count <= 6), f"{node.name}: {length} lines, {count} parameters"


def test_nothing_is_assigned_to_an_experiment() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment.__new__(Experiment).config = None  # type: ignore[assignment, misc]
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bsetattr\(experiment\b|object\.__setattr__\(", text), path


def test_one_module_asks_for_the_system() -> None:
    """Everything else calls files/system.py, so that tests can simulate another system there."""
    asks = re.compile(
        r"sys\.platform|os\.name\b|platform\.system|os\.uname|import (fcntl|msvcrt|resource)\b|SIGCHLD|SIGKILL"
        r"|sched_getaffinity|cpu_count|sysconf|posix_fallocate|os\.symlink|symlink_to|hardlink_to|os\.(replace|rename)\("
        r"|ops\.mkldnn|['\"]/(proc|dev|sys)/|os\.path\.(expanduser|commonpath)|getpass\.|Path\.home\("
        r"|import (selectors|select)\b"
    )
    for path in FILES:
        if path != PACKAGE / "files/system.py":
            assert not (found := asks.search(path.read_text(encoding="utf-8"))), f"{path}: {found}"
