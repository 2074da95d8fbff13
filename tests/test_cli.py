"""The command line: one line and the right exit code for every error, valid JSON and CSV, help."""

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowers_torch import accelerate
from flowers_torch.cli import COMMANDS, GROUPS, guarded, main
from flowers_torch.commands.predict import FEW_IMAGES
from flowers_torch.commands.train import minutes
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy import inputs as inputs_module
from flowers_torch.errors import DataError, UsageError
from flowers_torch.models.checkpoint import ModelInfo, build, save_classifier

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    info = ModelInfo("test_resnet", ("blue", "green", "re\x1b[31md"), Preprocessing(size=32))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_classifier(build(info).state_dict(), info, path)
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out = capsys.readouterr()
    assert out.err.startswith("flowers-torch: error: ") and out.err.count("\n") == 1 and "; fix: " in out.err
    assert "\x1b" not in out.err
    return out.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--arhc", "x"], 2, "use --arch"),
        (["--batch-size", "many"], 2, "--batch-size"),
        (["--batch-size", "0"], 2, "batch_size must be within 1"),
        (["--epochs", "2,x"], 2, "2,x"),
        (["--epochs", "1,2,3"], 2, "given for 3 stages, and the recipe has 2"),
        (["--set", "stages.finetune.lr"], 2, "has no ="),
        (["--set", "stages.1.lr=1"], 2, "no stage 1 for stages.1.lr (there are head, finetune)"),
        (["--set", "epochs=3"], 2, "epochs must be a list"),
        (["--set", "lr=1"], 2, "unknown field lr"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml"),
        (["--resume", "nowhere"], 2, "there is no run nowhere"),
        (["--resume", "nowhere", "--from", "x"], 2, "--resume"),
        (["--resume", "latest"], 2, "no run in"),
        (["--from", "nowhere"], 2, "there is no run nowhere"),
        (["--from", "nowhere", "--arch", "resnet50"], 2, "--from"),
        (["--allow-config-change"], 2, "--resume"),
        (["--allow-data-change"], 2, "--resume"),
        (["--arch", "inception_v33"], 2, "inception_v3"),
        (["--data", "no\x1b[31m\nwhere", "--weights", "none"], 3, "does not exist"),
        (["--data", "demo", "--weights", "no.pth"], 4, "no.pth"),
        (["--data", "demo", "--device", "cuda:77"], 2, "cuda:77"),
        (["--data", "demo", "--size", "20"], 2, "--size 20 is too small"),
    ],
)
def test_errors_of_training(
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == code
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_flowers17_without_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flowers_torch.data.sources.flowers17.URL", "http://127.0.0.1:9/17flowers.tgz")
    assert main(["train", "--arch", "inception_v3", "--weights", "none"]) == 6
    line = one_line(capsys)
    for part in (
        "http://127.0.0.1:9/17flowers.tgz",
        "--data FOLDER",
        "--data path/to/17flowers.tgz",
        "--data demo",
    ):
        assert part in line


def test_help_fits_one_screen_with_three_examples() -> None:
    command = [sys.executable, "train.py", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) <= 42 and max(map(len, text.splitlines())) <= 100
    assert text.count("flowers-torch train --arch") == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        guarded(name, ["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and text.startswith("usage:") and max(map(len, text.splitlines())) <= 110


def test_help_lists_the_commands_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for group, commands in GROUPS.items():
        start = lines.index(group) + 1
        assert [line.split()[0] for line in lines[start : start + len(commands)]] == list(commands)
    files = {path.stem.replace("_", "-") for path in (ROOT / "flowers_torch/commands").glob("[a-z]*.py")}
    assert files == set(COMMANDS)


def test_python_dash_m() -> None:
    command = [sys.executable, "-m", "flowers_torch", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("flowers-torch ")


RUN_COMMANDS = [
    *(["evaluate"], ["compare", "nowhere"], ["ensemble", "nowhere"], ["label-issues"], ["report"]),
    *(["predict", "x.jpg"], ["serve", "--port", "0"], ["pack"], ["export", "--format", "safetensors"]),
    *(["update", "new/"], ["train", "--resume"], ["train", "--from"], ["crossval", "--resume"]),
    *(["reproduce", "--run"], ["features", "x.jpg", "--out", "x.npz"], ["check", "demo", "--run"]),
]


@pytest.mark.parametrize("words", RUN_COMMANDS, ids=" ".join)
def test_every_command_reports_a_missing_run_alike(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("x.jpg")
    flag = words[-1] in ("--resume", "--from", "--run")
    assert main([*words, "nowhere"] if flag else [words[0], "nowhere", *words[1:]]) == 2
    assert "error: there is no run nowhere: expected a folder" in one_line(capsys)


def test_names_that_the_terminal_cannot_encode(
    model_file: str, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "bl\u00fcte \u4e2d.png"
    photo.write_bytes((photo_folder / "red" / "3.png").read_bytes())
    printed = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
        assert main(["predict", model_file, str(photo), "--csv"]) == 0
        sys.stdout.flush()
        (row,) = csv.DictReader(io.StringIO(printed.getvalue().decode("utf-8")))
    assert row["file"] == str(photo)


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["trian"]) == 2
    assert "'trian' is not a valid command; fix: use train" in capsys.readouterr().err


def test_prediction_as_text_json_and_csv(
    model_file: str, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(photo_folder / "red" / "3.png")
    assert main(["predict", model_file, photo, "--top", "2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(photo) and text.count("\n") == 1 and "\x1b" not in text
    assert main(["predict", model_file, photo, "--top", "3", "--json"]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert info["file"] == photo and len(info["classes"]) == 3
    assert sum(item["probability"] for item in info["classes"]) == pytest.approx(1)
    assert main(["predict", model_file, photo, "--top", "3", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["class"] for row in rows] == [item["class"] for item in info["classes"]]


@pytest.mark.needs("linux")
def test_unreadable_photos_end_with_3_and_the_others_are_classified(
    model_file: str, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").symlink_to("/proc/self/mem")  # reading it is an input/output error
    paths = [str(tmp_path), str(photo_folder / "red" / "3.png")]
    assert main(["predict", model_file, *paths, "--json"]) == 3
    bad, good = json.loads(capsys.readouterr().out)
    assert "bad.jpg: Input/output error" in bad["error"] and good["classes"]
    assert main(["predict", model_file, *paths, "--csv"]) == 3
    bad, good = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert bad["error"] and good["class"]
    (tmp_path / "bad.jpg").unlink()
    (tmp_path / "bad.jpg").symlink_to("bad.jpg")
    assert main(["predict", model_file, *paths, "--json"]) == 3
    bad, good = json.loads(capsys.readouterr().out)
    assert "bad.jpg: Too many levels" in bad["error"] and good["classes"]


def test_a_photo_that_fails_while_it_is_explained_costs_only_itself(
    model_file: str,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, reads = [str(photo_folder / "red" / f"{number}.png") for number in (3, 4)], []
    real = inputs_module.load_image

    def load(path: Path, *arguments: int) -> Image.Image:
        reads.append(path)
        if len(reads) == 3:  # both were predicted
            raise DataError(f"cannot read {path}: Input/output error")
        return real(path, *arguments)

    monkeypatch.setattr(inputs_module, "load_image", load)
    assert main(["predict", model_file, *photos, "--json", "--gradcam", str(tmp_path)]) == 3
    bad, good = json.loads(capsys.readouterr().out)
    assert "Input/output error" in bad["error"] and good["classes"] and Path(good["gradcam"]).exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--jsno"], 2),
        (["--top", "0"], 2),
        (["--max-error", "2%"], 2),
        (["--max-error", "150%"], 2),
        (["--coverage", "150%"], 2),
        (["--coverage", "many"], 2),
        (["--device", "cuda:77"], 2),
    ],
)
def test_json_is_valid_in_every_failure(
    arguments: list[str], code: int, model_file: str, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", model_file, str(photo_folder), *arguments, "--json"]) == code
    failure = json.loads(capsys.readouterr().out)
    assert failure["error"] and failure["exit_code"] == code
    for command in (["nowhere", str(photo_folder)], [model_file, "nowhere"]):
        assert main(["predict", *command, "--json"]) == 2
        assert "nowhere" in json.loads(capsys.readouterr().out)["error"]


def test_a_network_is_made_faster_only_for_many_photos(
    model_file: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take longer than it saves. The predictions are the same."""
    made, real = [], accelerate.fused_view

    def fused_view(*arguments: Any) -> torch.nn.Module:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(accelerate, "fused_view", fused_view)
    photos, found = sorted(map(str, photo_folder.glob("*/*.png")))[: FEW_IMAGES + 1], []
    for some, times in ((photos[:-1], 0), (photos, 1)):
        assert main(["predict", model_file, *some, "--json"]) == 0 and len(made) == times
        found.append(json.loads(capsys.readouterr().out))
    for few, many in zip(*found, strict=False):
        assert few["classes"][0]["class"] == many["classes"][0]["class"]
        assert few["classes"][0]["probability"] == pytest.approx(many["classes"][0]["probability"], rel=1e-4)


def test_predict_imports_no_readers_of_data_sets() -> None:
    """One photo is predicted in little more time than torch takes to be imported."""
    names = ("data.sources.open", "data.quality.scan", "models.keras.names", "models.weights", "report", "deploy.serve")
    code = "import sys, flowers_torch.api.classifier, flowers_torch.commands.predict; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {f"flowers_torch.{name}" for name in names} & set(loaded)


def test_json_of_a_bug(
    model_file: str,
    photo_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flowers_torch.deploy.inputs.find_inputs", lambda patterns: 1 / 0)
    assert main(["predict", model_file, str(photo_folder), "--json"]) == 1
    assert "ZeroDivisionError" in json.loads(capsys.readouterr().out)["error"]


def test_sorting_and_explaining(
    model_file: str, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(photo_folder / "red" / "3.png")
    flags = ["--sort-into", str(tmp_path / "sorted"), "--gradcam", str(tmp_path / "maps"), "--json"]
    assert main(["predict", model_file, photo, *flags]) == 0
    shown = capsys.readouterr()
    (info,) = json.loads(shown.out)
    assert f"sorted into {tmp_path / 'sorted'}: {Path(info['sorted']).parent.name}\n" in shown.err
    assert Path(info["sorted"]).resolve() == Path(photo).resolve()
    assert Path(info["gradcam"]).read_bytes()[:2] == b"\xff\xd8"
    assert info["abstained"] is False


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] and found["machine"]["device"] and found["ok"]
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "precision" in text and "all required packages are installed" in text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--top", "0"], 2), (["--top", "9"], 2), (["--json", "--csv"], 2), (["--batch-size", "-1"], 2)],
)
def test_errors_of_prediction(
    arguments: list[str], code: int, model_file: str, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", model_file, str(photo_folder), *arguments]) == code
    one_line(capsys)


def test_a_closed_pipe_is_not_an_error(model_file: str, photo_folder: Path) -> None:
    command = f"{sys.executable} -m flowers_torch.cli predict {model_file} {photo_folder} | head -1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.count("\n") == 1 and "Traceback" not in result.stderr


def test_no_error_paints_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (DataError("\x1b[2J\x9b31m", "fix \x07"), ValueError("\x1b]0;owned\x07")):
        monkeypatch.setattr("flowers_torch.commands.doctor.run", lambda args, error=error: raise_it(error))
        main(["doctor", "--json"])
        out, err = capsys.readouterr()
        assert err.rstrip("\n").isprintable() and out.rstrip("\n").isprintable() and "\\x1b" in err


def raise_it(error: Exception) -> None:
    raise error


def test_a_bug_asks_for_a_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("flowers_torch.runs.recipe.train", lambda *a, **k: 1 / 0)
    assert main(["train", "--data", "demo"]) == 1
    line = one_line(capsys)
    assert "ZeroDivisionError" in line and "this is a bug" in line


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()],
)
def test_out_of_memory(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)

    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr("flowers_torch.commands.models.run", fail)
    assert main(["models"]) == 6
    assert "out of memory; fix: lower --batch-size" in one_line(capsys)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("text", "expected"), [("90s", 1.5), ("20m", 20.0), ("1.5h", 90.0)])
def test_times(text: str, expected: float) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "20", "m", "20 minutes", "-"])
def test_invalid_times(text: str) -> None:
    with pytest.raises(UsageError, match="such as 90s, 20m"):
        minutes(text)


def test_the_process_runs_its_exit_handlers(tmp_path: Path) -> None:
    """Profilers and `atexit` work, and the exit code is that of the command."""
    code = "import atexit, sys; from flowers_torch.cli import main; sys.argv = ['flowers-torch', 'nonsense']; "
    code += f"atexit.register(open({str(tmp_path / 'cleaned')!r}, 'w').write, 'x'); sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "nonsense" in done.stderr
    assert (tmp_path / "cleaned").read_text() == "x"
