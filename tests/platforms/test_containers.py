"""Commands in a bare container, simulated by container.py, and the files of the image."""

import getpass
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flowers_torch.cli import main
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.training.device import choose_runtime

sys.path.append(str(Path(__file__).parent))
from container import simulated

pytestmark = pytest.mark.needs("linux")
ROOT = Path(__file__).parents[2]
WriteOptions = Callable[..., Path]


@pytest.fixture(scope="module")
def run(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory, write_options: WriteOptions) -> Path:
    """A run that was trained where only its folder can be written."""
    folder = tmp_path_factory.mktemp("data")
    options = write_options(folder)
    with simulated(folder):
        command = ["train", "--config", str(options), "--data", str(photo_folder), "--out", str(folder / "run")]
        assert main(command) == 0
    return folder / "run"


def test_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with simulated(tmp_path / "mine"):
        (tmp_path / "mine" / "a").write_text("a")
        for action in (
            lambda: (tmp_path / "b").write_text("b"),
            lambda: (tmp_path / "b").mkdir(),
            lambda: (tmp_path / "mine" / "a").rename(tmp_path / "a"),
            Path.home,
            getpass.getuser,
            tempfile.mkdtemp,
        ):
            with pytest.raises((OSError, RuntimeError, KeyError)):
                action()
    (tmp_path / "b").write_text("b")


def test_a_finished_run_is_used_without_writing(
    run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder that cannot be written
    photo = str(photo_folder / "red" / "0.png")
    with simulated():
        assert main(["predict", str(run), photo, "--csv"]) == 0
        assert main(["evaluate", str(run)]) == 0
        assert main(["check", str(photo_folder)]) == 0
        assert main(["doctor"]) == 0
        assert main(["runs", str(run.parent)]) == 0
        classifier = Predictor.load(run, choose_runtime())  # as the server does
        assert next(iter(classifier.predict([photo]))).classes[0]
    assert "red" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["train", "--arch", "test_resnet", "--data", "{photos}", "--weights", "none", "--size", "32"], "--out"),
        (["predict", "{run}", "{photos}", "--sort-into", "sorted"], "another folder"),
        (["export", "{run}", "--format", "safetensors"], "TMPDIR"),
        (["train", "--arch", "test_resnet", "--data", "demo"], "--cache"),
        (["train", "--arch", "test_resnet", "--data", "~nobody here/photos"], "folder"),
    ],
)
def test_what_has_to_be_written_names_the_flag(
    words: list[str],
    fix: str,
    run: Path,
    photo_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with simulated():
        code = main([word.format(photos=photo_folder, run=run) for word in words])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code in (2, 3, 6), error
    assert fix in error.partition("; fix: ")[2], error


def test_the_image_copies_what_the_package_is_made_of() -> None:
    """Dockerfile and .dockerignore name the same files, all of which exist, and the commands that exist."""
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copies = [line.split()[1:-1] for line in docker.splitlines() if line.startswith("COPY ") and "--from" not in line]
    copied = {word for words in copies for word in words}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    commands = [json.loads(line.removeprefix("CMD ")) for line in docker.splitlines() if line.startswith("CMD ")]
    assert commands == [["serve", "/model", "--host", "0.0.0.0"], ["--help"]]
    assert docker.count("USER 10001:10001") == 1 and "HEALTHCHECK" in docker and "/healthz" in docker
