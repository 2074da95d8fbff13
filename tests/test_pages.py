"""README and docs: the parser accepts every command, Python blocks run, links lead somewhere."""

import re
import shlex
import shutil
import signal
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowers_torch import cli, errors
from flowers_torch.accelerate import TRICKS
from flowers_torch.commands.train import overrides
from flowers_torch.config import AUGMENTATIONS
from flowers_torch.config_file import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "benchmarks/RESULTS.md"]
MAX_COLUMNS = 120  # of every line but the row of a table, which cannot be broken
OURS = re.compile(r"(python train\.py|flowers-torch [a-z]|torchrun .*(train\.py|flowers_torch) )")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of each fenced or indented block."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield language, code
    bare = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for code in re.findall(r"(?:^    .*\n)+", bare, re.M):
        yield "", "\n".join(line[4:] for line in code.splitlines())


def commands(page: Path) -> list[str]:
    """The commands in blocks and in backticks, one per string."""
    text = page.read_text()
    lines = [line for _, code in blocks(text) for line in code.replace("\\\n", " ").splitlines()]
    lines = [part.strip() for line in lines for part in line.split("&&")]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    # Lines with `...` are sketches for people.
    found = [line for line in lines if OURS.match(line) and "..." not in line and "$" not in line]
    return [re.split(r"\s{3,}", line)[0] for line in found]  # a comment follows


def words_of(command: str) -> tuple[str, list[str]]:
    """The name of a command and its arguments."""
    words = shlex.split(command, comments=True)
    if "train.py" in words:
        return "train", words[words.index("train.py") + 1 :]
    if "flowers_torch" in words:  # torchrun -m flowers_torch
        words = words[words.index("flowers_torch") :]
    return words[1], words[2:]


def parse(name: str, words: list[str]) -> Any:
    parser = cli.Parser(prog=name, allow_abbrev=False)
    module = import_module(f"flowers_torch.commands.{name.replace('-', '_')}")
    module.add_arguments(parser)
    return parser.parse_args(words)


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{p.name}: {c[:60]}" for p, c in ALL])
def test_the_parser_accepts_every_command(page: Path, command: str) -> None:
    name, words = words_of(command)
    assert name in cli.COMMANDS
    if not words:  # the command is only mentioned
        return
    args = parse(name, words)
    if name in ("train", "crossval", "lr-find") and not getattr(args, "resume", None):
        load_config(args.arch, args.data, args.config if args.config != "FILE" else "", overrides(args))


def test_many_commands_are_found() -> None:
    assert len(ALL) > 60 and len({page for page, _ in ALL}) >= 15


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > MAX_COLUMNS and not line.startswith("|")] == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_every_picture_is_shown() -> None:
    shown = {path for page in LINKED for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())}
    assert {path.name for path in (ROOT / "docs/images").iterdir()} <= {Path(path).name for path in shown}


def test_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text()))
    reached = linked | {
        f"docs/{name}" for page in linked if page.endswith(".md")
        for name in re.findall(r"\]\(([\w-]+\.md)", (ROOT / page).read_text())
    }  # fmt: skip
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= reached


@pytest.fixture
def workplace(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder that the pages assume."""
    shutil.copytree(photo_folder, tmp_path / "photos")
    for name in ("my_photos", "new_photos"):
        shutil.copytree(photo_folder, tmp_path / name, ignore=shutil.ignore_patterns("1?.png", "[5-9].png"))
    for name in ("blue", "green"):
        shutil.copytree(photo_folder / name, tmp_path / "two" / name)
    draw = np.random.default_rng(0)
    shapes = {
        "conv0": [(7, 7, 3, 32), (32,)],
        "bn0": [(32,), (32,), (32,), (32,)],
        "fc": [(32 * 32 * 32, 1), (1,)],
    }
    names = {2: ["kernel:0", "bias:0"], 4: ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"]}
    with h5py.File(tmp_path / "happy.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in shapes]
        for layer, arrays in shapes.items():
            group = file.create_group(layer)
            weights = [f"{layer}/{name}" for name in names[len(arrays)]]
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, shape in zip(weights, arrays, strict=True):
                group[name] = draw.uniform(0.1, 1, shape).astype(np.float32)
    for part, count in (("train", 24), ("test", 8)):
        labels = np.arange(count) % 2
        with h5py.File(tmp_path / f"{part}_happy.h5", "w") as file:
            pictures = draw.integers(0, 99, (count, 64, 64, 3)) + 99 * labels[:, None, None, None]
            file[f"{part}_set_x"], file[f"{part}_set_y"] = pictures.astype(np.uint8), labels[None]
            file["list_classes"] = np.arange(2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Lines that need a device, processes or a download are parsed only.
NEEDS_MORE = ("cuda", "torchrun", "cifar10")


def test_every_line_of_the_keras_table_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/from-keras.md").read_text()
    names: dict[str, Any] = {}
    exec(next(code for language, code in blocks(page) if language == "python"), names)
    rows = re.findall(r"^\| (.+?) \| `(.+?)`[^|]*\|$", page, re.M)
    table = [line for line in page.splitlines() if line.startswith("| ") and line != "| Keras | here |"]
    assert len(rows) == len(table) and all(keras for keras, _ in rows)
    assert sum(any(text in line for text in NEEDS_MORE) for _, line in rows) == len(NEEDS_MORE)
    for _, line in rows:
        if not OURS.match(line):
            exec(line, names)
        elif not any(text in line for text in NEEDS_MORE):
            name, words = words_of(line)
            assert cli.main([name, *words]) == 0, f"{line}: {capsys.readouterr().err}"
    assert (workplace / "look/contact_sheet.jpg").is_file() and (workplace / "model.svg").is_file()
    assert len(names["pictures"]) == 32 and names["maps"].shape[1] == 512
    assert len(names["predictions"]) == 20 and names["happy"](names["images"][:, :, :64, :64]).shape[1] == 2


@pytest.mark.parametrize("page", ["networks", "research"])
def test_python_blocks_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [code for language, code in blocks((ROOT / f"docs/{page}.md").read_text()) if language == "python"]
    assert codes
    for code in codes:
        exec(code, {})
    assert page != "research" or "frozen" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["export", "torch-hub", "from-python"])
def test_python_blocks_that_need_files_compile(page: str) -> None:
    codes = [code for language, code in blocks((ROOT / f"docs/{page}.md").read_text()) if language == "python"]
    assert codes and all(compile(code, page, "exec") for code in codes)


def test_toml_blocks_are_configurations(tmp_path: Path) -> None:
    found = [code for page in PAGES for language, code in blocks(page.read_text()) if language == "toml"]
    assert found
    for code in found:
        (tmp_path / "config.toml").write_text(code)
        assert load_config(file=str(tmp_path / "config.toml")) and tomllib.loads(code)


def test_every_augmentation_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/data.md").read_text().partition("## Augmentation")[2], re.M)
    assert tuple(rows) == AUGMENTATIONS


def test_every_acceleration_is_described() -> None:
    page = (ROOT / "docs/acceleration.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(TRICKS)
    assert page.count("**Why.**") == page.count("**Gain.**") == page.count("**Check.**") == len(TRICKS)


def test_every_exit_code_is_explained() -> None:
    listed = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs/errors.md").read_text(), re.M)
    codes = {int(code) for cell in listed for code in cell.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = {kind.exit_code for kind in kinds if issubclass(kind, errors.FlowersError)}
    assert codes == ours | {0, 128 + signal.SIGINT, 128 + signal.SIGTERM}


def test_readme_s_python_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    ran = 0
    for language, code in blocks(readme):
        if language == "python" and "torch.hub" not in code:
            exec(code, {})
            ran += 1
    assert ran == 2 and "report in runs" in capsys.readouterr().out
