"""Errors for Python programs name arguments, those of the command line flags."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from flowers_torch import Classifier, cli, train
from flowers_torch.api.arguments import NAMES, PROGRAMS, SWITCHES, with_arguments
from flowers_torch.errors import FlowersError, UsageError

PACKAGE = Path(__file__).parents[2] / "flowers_torch"


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("--batch-size 3 is too small; fix: use --batch-size 8", "batch_size=3 is too small; fix: use batch_size=8"),
        ("or leave them out with --skip-bad", "or leave them out with skip_bad=True"),
        ("--weights offline holds x, not y; fix: add --arch x", 'weights="offline" holds x, not y; fix: add model="x"'),
        ("give --weights FILE, or --weights none", 'give weights=FILE, or weights="none"'),
        ("--device cuda:7: torch sees 0", 'device="cuda:7": torch sees 0'),
        ("--max-error 2.5% cannot be promised", "max_error=0.025 cannot be promised"),
        ("leave out --int8, or allow it with --max-loss 3.1%", "leave out int8=True, or allow it with max_loss=0.031"),
        ("correct --groups", "correct groups"),
        ("--groups needs a table", "groups needs a table"),
        ("--out 'my run' is not empty", 'out="my run" is not empty'),
        ("--tta auto chooses", 'views="auto" chooses'),
        ("--exclude class:rose", 'exclude="class:rose"'),
        ("add --overwrite, use --resume, or", "add overwrite=True, use flowers_torch.resume(), or"),
        ("start a new run with --from runs/a-1", 'start a new run with weights="runs/a-1/model.safetensors"'),
        ("set --set stages.head.lr=0.1", 'set **{"stages.head.lr": 0.1}'),
        ("list the runs with: flowers-torch runs --json", "list the runs with: flowers-torch runs --json"),
        ("a larger /dev/shm (docker run --shm-size=2g)", "a larger /dev/shm (docker run --shm-size=2g)"),
        ("well-known--photo.jpg is empty", "well-known--photo.jpg is empty"),
    ],
)  # fmt: skip
def test_flags_become_arguments(flags: str, arguments: str) -> None:
    assert with_arguments(flags) == arguments


def messages() -> dict[str, str]:
    """Every text of the package outside of the command line that names a flag."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("commands", "cli.py", "tutorials", "api"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
                text = "".join(map(str, parts))
            else:
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.search(r"(?<![\w-])--[a-z]", text) and "\n" not in text:
                found[f"{path.name}:{node.lineno}"] = text
    return found


def test_no_message_of_the_package_names_a_flag_in_python() -> None:
    found = messages()
    assert len(found) > 60
    for where, text in found.items():
        command = PROGRAMS.sub("", with_arguments(text))
        assert not re.search(r"(?<![\w-])--[a-z]", command), f"{where}: {command}"


def test_every_renamed_flag_exists() -> None:
    """A flag that the command line drops does not stay in the table."""
    commands = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "commands").glob("*.py"))
    for flag in {*NAMES, *SWITCHES}:
        assert f'"--{flag}"' in commands, flag


def test_errors_of_functions_and_of_commands(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "mine").mkdir(parents=True)
    options: Any = {"out": tmp_path / "run", "size": 32, "quiet": True, "device": "cpu"}
    with pytest.raises(UsageError, match=r"^out=\S+ is not empty; fix: add overwrite=True, use flowers_torch\.resume"):
        train(photo_folder, "test_resnet", "none", **options)
    with pytest.raises(FlowersError, match=r'^weights="offline" holds .* fix: add model="tf_efficientnet_lite0"'):
        train(photo_folder, "test_resnet", "offline", **options)
    with pytest.raises(UsageError, match=r'^device="cuda:77"'):
        Classifier.load(tmp_path, "cuda:77")
    arguments = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "offline", "--size", "32"]
    assert cli.main(["train", *arguments]) == 2
    assert "--weights offline holds" in capsys.readouterr().err
