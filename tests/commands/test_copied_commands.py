"""Commands that are printed or written to files run when pasted, from any working directory."""

import html
import io
import re
import shlex
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from flowers_torch import shell, train
from flowers_torch.cli import main
from flowers_torch.shell import command_line, split_command

FLAGS = "--arch test_resnet --size 32 --epochs 1,1 --device cpu --precision fp32".split()


@pytest.fixture(scope="module")
def place(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a run in `my runs/1`, and the output of training; the command ran in that folder."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(photo_folder, place / "photos")
    typed = ["train", "--data", "photos", "--weights", "first/model.safetensors", *FLAGS]
    typed += ["--set", "stages.finetune.lr=1e-9", "--set", "stages.head.lr=1e-9", "--out", "my runs/1"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(place)
        train("photos", "test_resnet", "none", size=32, epochs=(1, 1), device="cpu", out="first", quiet=True)
        assert main(typed) == 0, printed.getvalue()
    return place, printed.getvalue()


def paste(line: str, out: Path, photo: Path) -> None:
    """Runs a command with a photo and an output folder in place of the placeholders."""
    name, *words = shlex.split(line.replace("PHOTO...", shlex.quote(str(photo))))
    assert name == "flowers-torch"
    if words[0] == "train":
        words = [word for word in words if word not in ("--out", "NEW")] + ["--out", str(out), "--quiet"]
    assert main(words) == 0, line


def test_printed_commands(place: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, printed = place
    lines = [found[1] for found in re.finditer(r"^(?:next|try) .*?(flowers-torch .*)$", printed, re.M)]
    assert len(lines) > 1 and all(" train --config " in line for line in lines[:-1])
    for number, line in enumerate(lines[:-1]):
        paste(line, tmp_path / str(number), folder)
    monkeypatch.chdir(folder)
    paste(lines[-1], tmp_path, folder / "photos" / "red" / "1.png")


def test_stored_commands(place: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = place
    run = folder / "my runs" / "1"
    typed = (run / "command.txt").read_text().strip()
    assert typed.startswith("flowers-torch train --data photos ") and typed.endswith(" --out 'my runs/1'")
    heading = (run / "config.toml").read_text().splitlines()[0].partition("repeat with: ")[2]
    from_python = (folder / "first" / "command.txt").read_text().strip()
    assert from_python == command_line("flowers-torch", "train", "--config", folder / "first" / "config.toml")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(heading)[1:]) == 0, "into a new folder of its own"
    assert (tmp_path / "runs" / "photos-test_resnet-1" / "metrics.json").is_file()
    paste(from_python, tmp_path / "again", folder)


def test_commands_of_the_report(place: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = place
    monkeypatch.chdir(tmp_path)
    page = (folder / "my runs" / "1" / "report.html").read_text().replace("<span>", "").replace("</span>", "")
    lines = {html.unescape(found) for found in re.findall(r"<pre[^>]*>(flowers-torch .*?)</pre>", page)}
    lines = {line for line in lines if "--data photos" not in line}  # the command that was typed
    assert {line.split()[1] for line in lines} == {"train", "predict", "label-issues"}
    for number, line in enumerate(sorted(lines)):
        paste(line, tmp_path / str(number), folder / "photos" / "red" / "1.png")


def test_commands_printed_by_other_commands(
    place: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = place
    monkeypatch.chdir(folder)
    options = ["--data", "photos", "--weights", "none", *FLAGS]
    crossval = ["crossval", *options, "--folds", "3", "--out", str(tmp_path / "cv")]
    assert main(crossval) == 0
    assert (tmp_path / "cv/seed0-fold2/command.txt").read_text() == shlex.join(["flowers-torch", *crossval]) + "\n"
    resume = (tmp_path / "cv" / "config.toml").read_text().splitlines()[0].partition("resume with: ")[2]
    assert main(shlex.split(resume)[1:]) == 0
    capsys.readouterr()
    assert main(["lr-find", *options, "--stage=finetune", "--steps", "10", "--highest", "0.1"]) == 0
    (line,) = re.findall(r"^next +(.*)$", capsys.readouterr().out, re.M)
    assert shlex.split(line)[2:-2] == options and "--set stages.finetune.lr=" in line
    paste(line, tmp_path / "tried", folder)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("C:\\photos", "C:\\photos"),
        ("C:\\my photos", '"C:\\my photos"'),
        ("D:\\a & b\\", '"D:\\a & b\\\\"'),
        ("it's", '"it\'s"'),
        ("", '""'),
        ("--lr=0.1", "--lr=0.1"),
    ],
)
def test_words_are_quoted_for_windows(word: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cmd and PowerShell both take double quotes; cmd does not know single ones."""
    monkeypatch.setattr(shell, "WINDOWS", True)
    line = command_line("flowers-torch", word, "x")
    assert line == f"flowers-torch {shown} x"
    assert [each.rstrip("\\") for each in split_command(line)] == ["flowers-torch", word.rstrip("\\"), "x"]


@pytest.mark.parametrize("word", ["a b", "it's", "#1", "a\\b", ""])
def test_a_command_line_can_be_read_again(word: str) -> None:
    assert split_command(command_line("flowers-torch", word)) == ["flowers-torch", word]


@pytest.mark.parametrize("word", ["a b", "it's", "~", "$HOME", "\x1b[31m\n'\\", "ü", "\udcff"])
def test_words_are_quoted(word: str) -> None:
    line = command_line("printf", "%s", word)
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == word.encode("utf-8", "surrogateescape")
