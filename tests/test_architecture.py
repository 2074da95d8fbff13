"""What the layout promises: who may import whom, what is never called, what is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flowers_torch"
LEAVES = {"errors", "files", "shell", "__init__"}
ABOVE = {
    "models": {"models"},
    "data": {"data"},
    "training": {"training", "models", "data"},
    "evaluation": {"evaluation", "training", "models", "data"},
    "report": {"report", "evaluation", "training", "models", "data"},
    "deploy": {"deploy", "report", "evaluation", "training", "models", "data"},
}
DOORS = {"api", "cli", "commands", "tutorials"}
TOP = """config prepare planning front stage resuming recipe results insight crossval shortlist
    update"""
CONFIG_READERS = {*TOP.split(), *DOORS}
FILES = sorted(PACKAGE.rglob("*.py"))


def our_imports(path: Path) -> set[str]:
    """First-level names inside the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("flowers_torch.")}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrow(path: Path) -> None:
    owner = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = our_imports(path) - LEAVES
    if owner in LEAVES - {"__init__"}:
        assert not imported
    elif owner in ABOVE:
        assert imported <= ABOVE[owner]
    if owner not in {*DOORS, "__init__"}:
        assert not imported & DOORS
    if "config" in imported:
        assert owner in CONFIG_READERS


def test_the_arrow_test_sees_imports() -> None:
    """The check above can fail: it does find what recipe.py imports."""
    assert {"training", "data", "models", "evaluation", "config"} <= our_imports(PACKAGE / "stage.py")


@pytest.mark.parametrize("path", [*FILES, ROOT / "train.py", ROOT / "hubconf.py"], ids=lambda path: path.name)
def test_nothing_that_runs_foreign_code_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_train_py_is_short() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) <= 50
    assert len((PACKAGE / "recipe.py").read_text().splitlines()) <= 250


def test_readme_s_layout_names_every_module() -> None:
    layout = (ROOT / "README.md").read_text().split("## Layout")[1]
    listed, folder = [], ""
    for line in layout.split("```")[1].splitlines():
        if not line.startswith(" "):
            folder = line.split(" ")[0].rstrip("/")
        elif line.strip():
            listed.append((folder, line.split()[0]))
            assert len(line.split()) > 1, f"{line} says nothing"
    files = [(path.parent.relative_to(ROOT).as_posix(), path.name) for path in FILES]
    assert sorted(listed) == sorted(file for file in files if file[1] != "__init__.py")
