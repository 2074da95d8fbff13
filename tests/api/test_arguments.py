"""Errors for Python programs name arguments, those of the command line flags."""

import ast
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import flowers_torch
from flowers_torch import Classifier, cli, create_model, train
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
        ("use --epochs 2,4 or more", "use epochs=(2, 4) or more"),
        ("next flowers-torch predict 'my run' PHOTO...", 'next flowers_torch.Classifier.load("my run")(PHOTO)'),
        ("(to classify: flowers-torch predict RUN a/b)", '(to classify: flowers_torch.Classifier.load(RUN)("a/b"))'),
        ("flowers-torch train --set a.b=1 --epochs 1,2", 'flowers_torch.train(**{"a.b": 1}, epochs=(1, 2))'),
        ("flowers-torch train --int8 --data 'it'\"'\"'s a'", 'flowers_torch.train(int8=True, data="it\'s a")'),
        ("resume with: flowers-torch train --resume /a-1", 'resume with: flowers_torch.resume("/a-1")'),
        ("flowers-torch predict a b --json", "flowers-torch predict a b --json"),
        ("flowers-torch evaluate 'a b' --save", "flowers-torch evaluate 'a b' --save"),
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


def test_the_log_of_a_python_program_names_no_flag(
    photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """What training and prediction print can be typed in Python; what the command prints, in a shell."""
    caplog.set_level("INFO", "flowers_torch")
    options: dict[str, Any] = {"size": 32, "device": "cpu", "precision": "fp32", "batch_size": 8, "epochs": (1, 1)}
    options |= {"weights": "none", "stages.finetune.lr": 1e-6, "stages.head.lr": 1e-6}
    result = train(photo_folder, "test_resnet", out=tmp_path / "run", **options)
    result.classifier(photo_folder)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) > 20 and not [line for line in lines if re.search(r"(?<![\w-])--[a-z]|flowers-torch", line)]
    assert (tmp_path / "run/log.txt").read_text().count(" --") == 0 and " --" not in capsys.readouterr().out
    (mirror,), (following,), tries = (
        [line[9:] for line in lines if line.startswith(word)] for word in ("mirror", "next", "try")
    )
    assert 'mirror="no" if a mirror' in mirror and "flowers_torch.train(recipe=" in tries[0]
    predictions = eval(following.replace("PHOTO", "photo"), {"flowers_torch": flowers_torch, "photo": photo_folder})
    assert len(predictions) == 60
    ast.parse(tries[0][tries[0].index("flowers_torch.train") :])
    caplog.clear()
    words = ["--data", str(photo_folder), *"--arch test_resnet --weights none --size 32 --device cpu".split()]
    assert cli.main(["train", *words, "--epochs", "1,1", "--out", str(tmp_path / "command")]) == 0
    assert "--mirror no" in caplog.text and "flowers-torch predict" in caplog.text


def test_every_public_function_names_arguments() -> None:
    with pytest.raises(UsageError, match="^size=3 is too small"):
        create_model("inception_v3", 5, size=3)
    assert pickle.loads(pickle.dumps(create_model)) is create_model
    for name in flowers_torch.__all__:
        found = getattr(flowers_torch, name)
        assert not inspect.isfunction(found) or found.__module__ == "flowers_torch", name
