"""The whole way on a few small photos: train, stop, resume, test, predict."""

import csv
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch.cli import guarded, main
from flowers_torch.commands.train import start_from
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config
from flowers_torch.data.loading import batches
from flowers_torch.data.loading.loaders import EpochBatchSampler
from flowers_torch.errors import DataError, ModelFileError, StoppedError, UsageError
from flowers_torch.files.tensors import safe_load
from flowers_torch.runs import cost as planning
from flowers_torch.runs import experiment as prepare
from flowers_torch.runs import recipe, stage
from flowers_torch.runs.folder import FILES, new_run_folder
from flowers_torch.training import step as engine
from flowers_torch.training.checkpoint import read_checkpoint

ROOT = Path(__file__).parent.parent


def config(data: Path, out: Path, **changes: Any) -> Config:
    head = Stage(name="head", epochs=2, train="head", lr=0.01, views=0)
    finetune = Stage(name="finetune", epochs=2, train="layer1", lr=0.01, augment="light")
    values = {"size": 32, "batch_size": 8, "precision": "fp32", "weights": "none", "device": "cpu"} | changes
    return Config(arch="test_resnet", data=str(data), out=str(out), stages=[head, finetune], **values)


@pytest.fixture(scope="module")
def finished(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> recipe.Result:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return recipe.train(config(photo_folder, out, dropout=0.3), argv=["train.py", "--x", "a b"])


def test_it_learns_colours(finished: recipe.Result) -> None:
    assert finished.test.accuracy >= 0.9
    assert [(row["stage"], row["epoch"]) for row in finished.history] == [
        ("head", 1),
        ("head", 2),
        ("finetune", 1),
        ("finetune", 2),
    ]


def test_the_run_folder(finished: recipe.Result, photo_folder: Path) -> None:
    folder = finished.folder
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    elsewhere = {"resume.safetensors", "resume.previous.safetensors", "bad_files.jsonl"}
    elsewhere |= {"label_issues.json", "figures/learning_curve.svg"}  # `flowers-torch report` writes them
    elsewhere |= {
        name for name in FILES if name.startswith(("exported/", "packed/"))
    }  # and these export, pack
    assert found - {".lock"} == set(FILES) - elsewhere
    assert (folder / "labels.txt").read_text() == "blue\ngreen\nred\n"
    assert (folder / "command.txt").read_text() == "train.py --x 'a b'\n"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] == finished.test.accuracy
    assert metrics["best_epoch"] == min(finished.history, key=lambda row: row["val_calibrated_loss"])
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    split = json.loads((folder / "split.json").read_text())
    assert [row["file"] for row in rows] == list(split["splits"]["test"])
    assert sum(int(row["correct"]) for row in rows) == finished.test.correct
    wanted = dataclasses.replace(
        config(photo_folder, folder, dropout=0.3), out=""
    )  # to be run again elsewhere
    assert load_config(file=str(folder / "config.toml")) == wanted
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 4
    assert "test     accuracy" in (folder / "log.txt").read_text()


def test_the_same_seed_gives_the_same_weights(
    finished: recipe.Result, photo_folder: Path, tmp_path: Path
) -> None:
    again = recipe.train(config(photo_folder, tmp_path / "again", dropout=0.3, workers=2))
    other = recipe.train(config(photo_folder, tmp_path / "other", dropout=0.3, seed=1))
    weights = [safe_load(run.folder / "model.safetensors")[0] for run in (finished, again, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["fc.out.weight"], weights[2]["fc.out.weight"])


KILL = """
import os, signal, sys
from flowers_torch.runs import recipe
from flowers_torch.config_file import load_config
from flowers_torch.training import step as engine
real, left = engine.train_step, [int(sys.argv[2])]
def step(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
engine.train_step = step
recipe.train(load_config(file=sys.argv[1]))
"""


@pytest.mark.parametrize("steps", [3, 8, 13])
def test_a_killed_run_resumes_to_the_same_weights(
    finished: recipe.Result, photo_folder: Path, tmp_path: Path, steps: int
) -> None:
    """SIGKILL within an epoch and within either stage; a save after each step makes the first ones count."""
    from flowers_torch.config_file import to_toml

    wanted = config(photo_folder, tmp_path / "killed", dropout=0.3, checkpoint_minutes=0.0)
    (tmp_path / "c.toml").write_text(to_toml(wanted, "killed on the way"))
    command = [sys.executable, "-c", KILL, str(tmp_path / "c.toml"), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "killed" / "resume.safetensors").is_file()
    result = recipe.resume(tmp_path / "killed")
    assert result is not None and len(result.history) == 4
    ours, whole = (safe_load(folder / "model.safetensors")[0] for folder in (result.folder, finished.folder))
    assert all(torch.equal(value, ours[name]) for name, value in whole.items())
    assert result.test.correct == finished.test.correct


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_photo_that_goes_missing_during_training_costs_no_step(
    finished: recipe.Result,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    """It is named, what was done is saved, and with the photo back the run ends as it would have."""
    shutil.copytree(photo_folder, tmp_path / photo_folder.name)
    wanted = config(tmp_path / photo_folder.name, tmp_path / "run", dropout=0.3, workers=workers)
    real, steps = stage.train_epoch, []

    def epoch(*arguments: Any) -> Any:
        for rate in real(*arguments):
            steps.append(rate)
            if len(steps) == len(order):  # workers read ahead, but not into the next epoch
                gone.rename(tmp_path / "elsewhere.png")
            yield rate

    photos = prepare.open_filtered(wanted).dataset
    train = prepare.choose_split(photos, wanted)["train"]
    order = EpochBatchSampler(len(train), 8, seed=0, shuffle=True)
    order.epoch = 1
    last = [position for batch in order for _, position in batch][-1]
    gone = photos.root / photos.paths[train[last]]
    with monkeypatch.context() as patch:
        patch.setattr(
            prepare, "make_image_cache", lambda *arguments: None
        )  # each epoch reads the files again
        patch.setattr(stage, "train_epoch", epoch)
        with pytest.raises(DataError, match=gone.name):
            recipe.train(wanted)
    saved = read_checkpoint(tmp_path / "run" / "resume.safetensors").progress
    assert (saved.epoch, saved.step) == (1, len(order) - 1)  # all but the batch that held the photo

    with (
        caplog.at_level("INFO", logger="flowers_torch"),
        pytest.raises(DataError, match="1 missing, 0 edited"),
    ):
        recipe.resume(tmp_path / "run")
    assert "first missing: " in caplog.text
    shutil.copytree(tmp_path / "run", tmp_path / "allowed")
    (tmp_path / "elsewhere.png").rename(gone)
    result = recipe.resume(tmp_path / "run")
    assert result is not None
    ours, whole = (safe_load(folder / "model.safetensors")[0] for folder in (result.folder, finished.folder))
    assert all(torch.equal(value, ours[name]) for name, value in whole.items())

    gone.unlink()
    allowed = recipe.resume(tmp_path / "allowed", allow_data_change=True)
    assert allowed is not None
    assert [row["changes"] for row in allowed.history] == [0, 1, 1, 1]
    metrics = json.loads((tmp_path / "allowed" / "metrics.json").read_text())
    assert metrics["changes"] == [{"stage": 0, "epoch": 1, "missing": 1, "edited": 0, "added": 0}]
    parts = json.loads((tmp_path / "allowed" / "split.json").read_text())["splits"]
    assert gone.name not in {Path(name).name for name in parts["train"] if Path(name).parent == gone.parent}


def test_a_finished_run_has_nothing_to_resume(finished: recipe.Result) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    assert recipe.resume(finished.folder) is None
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}


def test_no_saved_state(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no saved state"):
        recipe.resume(tmp_path)


def test_an_earlier_run_is_not_overwritten(finished: recipe.Result, photo_folder: Path) -> None:
    with pytest.raises(UsageError, match="not empty.*--overwrite"):
        recipe.train(config(photo_folder, finished.folder))


def test_overwriting_touches_our_files_only(tmp_path: Path) -> None:
    for name in ("model.safetensors", "log.txt", "notes_of_mine.txt"):
        (tmp_path / name).write_text("x")
    new_run_folder(str(tmp_path), "d", "a", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"notes_of_mine.txt"}


def test_runs_are_numbered(tmp_path: Path) -> None:
    names = [new_run_folder("", "my photos/é", "net", root=tmp_path).name for _ in range(3)]
    assert names == [f"my_photos_é-net-{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("batch_augment", [True, False])
def test_class_weights_mixed_photos_and_a_last_batch_of_one(
    photo_folder: Path, tmp_path: Path, batch_augment: bool
) -> None:
    """36 training photos in batches of 5 leave one over; the classes are even, so weights change nothing."""
    wanted = config(
        photo_folder, tmp_path / "r", batch_size=5, class_weights="balanced", batch_augment=batch_augment
    )
    wanted.stages[1] = dataclasses.replace(wanted.stages[1], mixup=0.4, cutmix=1.0)
    result = recipe.train(wanted)
    assert result.test.images >= 3 and result.test.accuracy >= 0.8


def test_a_dry_run_writes_nothing(
    photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", logger="flowers_torch"):
        planning.dry_run(config(photo_folder, tmp_path / "out"))
    assert not list(tmp_path.iterdir())
    for part in ("60 photos", "3 classes", "stage 1", "stage 2", "frozen", "minutes", "GiB", "input 32 px"):
        assert part in caplog.text


def test_too_small_an_input_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--size 32 is too small for inception_v3"):
        prepare.prepare(Config(arch="inception_v3", data=str(tmp_path / "none"), weights="none", size=32))


def stop_after(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, steps: int) -> None:
    """Has the process signalled in its `steps`-th training step."""
    real, left = engine.train_step, [steps]

    def step(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(engine, "train_step", step)


EVERYTHING = {"dropout": 0.3, "ema": 0.9, "micro_batch": 3, "label_smoothing": 0.1}


def with_everything(data: Path, out: Path) -> Config:
    """A run in which all that carries state from step to step is on."""
    wanted = config(data, out, **EVERYTHING)
    changes = {"l1": 1e-4, "l2": 1e-3, "l2_sp": 1e-2, "layer_decay": 0.5, "patience": 3}
    changes["views"] = 1  # what the front answers is computed once, and again on resuming
    plateau = {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.5}
    wanted.stages = [dataclasses.replace(stage, **changes, **plateau) for stage in wanted.stages]
    return wanted


@pytest.fixture(scope="module")
def whole_with_everything(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> recipe.Result:
    return recipe.train(with_everything(photo_folder, tmp_path_factory.mktemp("runs") / "everything"))


@pytest.mark.parametrize(
    ("number", "steps"), [(signal.SIGTERM, 3), (signal.SIGINT, 13), (signal.SIGTERM, 20)]
)
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_happened(
    whole_with_everything: recipe.Result,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    steps: int,
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        stop_after(patched, number, steps)
        with pytest.raises(StoppedError, match=f"stopped by {number.name}.*--resume") as caught:
            recipe.train(with_everything(photo_folder, tmp_path / "run"))
    assert caught.value.exit_code == 128 + number
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    result = recipe.resume(tmp_path / "run")
    assert result is not None
    ours, whole = (safe_load(r.folder / "model.safetensors")[0] for r in (result, whole_with_everything))
    assert all(torch.equal(value, ours[name]) for name, value in whole.items())
    timings = ("seconds", "images_per_second")
    rows = [
        [{key: value for key, value in row.items() if key not in timings} for row in run.history]
        for run in (result, whole_with_everything)
    ]
    assert rows[0] == rows[1]


def test_going_on_with_other_options(
    finished: recipe.Result,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What changes nothing is taken; what changes the result is refused, or allowed and noted."""
    with monkeypatch.context() as patched:
        stop_after(patched, signal.SIGTERM, 8)
        with pytest.raises(StoppedError):
            recipe.train(config(photo_folder, tmp_path / "run", dropout=0.3))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    result = recipe.resume(tmp_path / "run", {"workers": 2})
    assert result is not None
    ours, whole = (safe_load(r.folder / "model.safetensors")[0] for r in (result, finished))
    assert all(torch.equal(value, ours[name]) for name, value in whole.items())

    with caplog.at_level("INFO", "flowers_torch"), pytest.raises(UsageError, match="--allow-config-change"):
        recipe.resume(tmp_path / "copy", {"batch_size": 6})
    assert "batch_size  8 -> 6" in caplog.text
    other = recipe.resume(tmp_path / "copy", {"batch_size": 6}, allow_config_change=True)
    assert other is not None
    assert [row["changes"] for row in other.history] == [0, 1, 1, 1]  # the second epoch was begun anew
    noted = json.loads((tmp_path / "copy" / "metrics.json").read_text())["changes"]
    assert noted == [{"stage": 0, "epoch": 1, "options": "batch_size 8 -> 6"}]
    assert load_config(file=str(tmp_path / "copy" / "config.toml")).batch_size == 6


def test_damaged_best_weights_are_found_before_the_rest_is_trained(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_after(patched, signal.SIGTERM, 13)
        with pytest.raises(StoppedError):
            recipe.train(config(photo_folder, tmp_path / "run"))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"x" * 99)
    monkeypatch.setattr(engine, "train_step", None)
    with pytest.raises(ModelFileError, match="model.safetensors"):
        recipe.resume(tmp_path / "run")


def test_beginning_anew_from_the_weights_of_a_run(finished: recipe.Result, tmp_path: Path) -> None:
    wanted = load_config(**start_from(str(finished.folder), {"out": str(tmp_path / "run"), "seed": 3}))
    assert wanted == dataclasses.replace(
        load_config(file=str(finished.folder / "config.toml")),
        weights=str(finished.folder / "model.safetensors"),
        out=str(tmp_path / "run"),
        seed=3,
    )
    result = recipe.train(wanted)
    assert result.history[0]["train_loss"] < finished.history[0]["train_loss"]


def test_patience_ends_a_stage_with_its_best_weights(
    photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = config(photo_folder, tmp_path / "run")
    hopeless = dataclasses.replace(wanted.stages[0], epochs=9, lr=300.0, schedule="constant", patience=2)
    wanted.stages = [hopeless, wanted.stages[1]]
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(wanted)
    head = [row["val_calibrated_loss"] for row in result.history if row["stage"] == "head"]
    assert len(head) < 9 and head[-2:] == [loss for loss in head[-2:] if loss >= min(head[:-2])]
    assert "ends early: 2 epochs without" in caplog.text


def test_time_takes_epochs_off_and_leaves_a_usable_model(
    photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = config(photo_folder, tmp_path / "run", minutes=0.05)
    wanted.stages[1].epochs = 100_000
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(wanted)
    planned = load_config(file=str(result.folder / "config.toml")).stages[1].epochs
    assert planned < 100_000 and len(result.history) <= 2 + planned
    assert (result.folder / "model.safetensors").is_file() and not math.isnan(result.test.loss)


SMALL_RUN = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--precision", "fp32"]
SMALL_RUN += ["--device", "cpu", "--set", "stages.head.views=0"]


def test_a_resumed_run_keeps_to_its_time(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> Any:
        raise DataError("a photo is gone", "put it back")
        yield

    real, given = recipe.stop_request, []
    monkeypatch.setattr(
        recipe, "stop_request", lambda seconds, patient: (given.append(seconds), real(seconds, patient))[1]
    )
    flags = ["train", "--data", str(photo_folder), *SMALL_RUN, "--epochs", "1,1", "--time", "10m"]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_epoch", stopped)
        assert main([*flags, "--out", str(tmp_path / "run")]) == 3
    saved = read_checkpoint(tmp_path / "run" / "resume.safetensors").progress
    assert saved.closing_seconds > 0
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert given[1] < 600 - saved.closing_seconds - saved.elapsed < given[0]


def test_a_loss_that_is_not_finite_spoils_neither_results_nor_report(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage._row

    def row(*arguments: Any) -> dict[str, Any]:
        made = real(*arguments) | {"train_loss": math.inf}
        if made["stage"] == "head":
            made |= {"val_loss": math.nan, "val_calibrated_loss": math.nan}
        return made

    monkeypatch.setattr(stage, "_row", row)
    folder = tmp_path / "run"
    flags = ["train", "--data", str(photo_folder), *SMALL_RUN, "--epochs", "2,2", "--out", str(folder)]
    assert main(flags) == 0
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"]["train_loss"] is None
    assert main(["report", str(folder)]) == 0
    assert '<h2 id="learning-title">' in (folder / "report.html").read_text()


def test_the_loss_that_keeps_weights_also_ends_stages_and_advises(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the bare loss rises from epoch to epoch while the calibrated one falls."""
    real, count = stage._row, itertools.count(1)

    def row(*arguments: Any) -> dict[str, Any]:
        number = next(count)
        losses = {"val_loss": float(number), "val_calibrated_loss": 1 / number}
        return real(*arguments) | losses | {"val_accuracy": 0.9, "train_accuracy": 0.9}

    monkeypatch.setattr(stage, "_row", row)
    flags = ["train", "--data", str(photo_folder), *SMALL_RUN, "--epochs", "1,3"]
    flags += ["--set", "stages.finetune.patience=1", "--out", str(tmp_path / "run")]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert next(count) == 5 and "ends early" not in printed
    assert "made it worse" not in printed
    assert "the calibrated validation loss was still falling in the last epoch (by 25%)" in printed
    report = (tmp_path / "run" / "report.html").read_text()
    assert "made it worse" not in report and "still falling" in report


def test_no_time_at_all_still_ends_in_a_test(photo_folder: Path, tmp_path: Path) -> None:
    result = recipe.train(config(photo_folder, tmp_path / "run", minutes=1e-6))
    assert len(result.history) == 1 and result.test.images > 0


def test_tensorboard_gets_each_epoch(photo_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    recipe.train(config(photo_folder, tmp_path / "run", tensorboard=True))
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 4


@pytest.mark.slow
def test_the_demo_run(tmp_path: Path) -> None:
    """README's first command: at most 90 s on two cores and 0.95 on its own test split."""
    command = [sys.executable, str(ROOT / "train.py"), "--arch", "inception_v3", "--data", "demo"]
    started = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    print(f"{time.monotonic() - started:.1f} s")
    metrics = json.loads((tmp_path / "runs" / "demo-inception_v3-1" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= 0.95


def test_lr_find_draws_and_suggests(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowers_torch.config_file import to_toml

    (tmp_path / "c.toml").write_text(to_toml(config(photo_folder, tmp_path / "run"), "for a test"))
    arguments = ["--config", str(tmp_path / "c.toml"), "--steps", "40", "--plot", str(tmp_path / "sweep.svg")]
    assert guarded("lr-find", [*arguments, "--stage", "head"]) == 0
    printed = capsys.readouterr().out
    assert "rate     " in printed and "--set stages.head.lr=" in printed
    assert "<polyline" in (tmp_path / "sweep.svg").read_text() and not (tmp_path / "run").exists()
    assert guarded("lr-find", [*arguments, "--stage", "1"]) == 2


def test_a_run_as_on_a_gpu_is_the_same_run(
    finished: recipe.Result, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos stay on the device, steps are read three at a time, and a signal comes between two readings."""
    monkeypatch.setattr(stage, "read_every", lambda optimizer, device: 3)
    monkeypatch.setattr(batches, "cache_bytes_on", lambda device: 1 << 30)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, signal.SIGTERM, 8)
        recipe.train(config(photo_folder, tmp_path / "run", dropout=0.3))
    saved = read_checkpoint(tmp_path / "run" / "resume.safetensors").progress
    assert (saved.epoch, saved.step, saved.sums.photos) == (1, 3, 24)
    result = recipe.resume(tmp_path / "run")
    assert result is not None and "stay on cpu" in (tmp_path / "run" / "log.txt").read_text()
    ours, whole = (safe_load(folder / "model.safetensors")[0] for folder in (result.folder, finished.folder))
    assert all(torch.equal(value, ours[name]) for name, value in whole.items())
    losses = [[row["train_loss"] for row in run.history] for run in (result, finished)]
    assert losses[0] == losses[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "fp16", "ema": 0.9, "clip_grad": 1.0}, {"precision": "auto"}, {"accelerate": "off"}],
    ids=str,
)
def test_a_run_on_a_gpu(options: dict[str, Any], photo_folder: Path, tmp_path: Path) -> None:
    result = recipe.train(config(photo_folder, tmp_path / "run", **{"device": "cuda", **options}))
    assert len(result.history) == 4 and result.test.accuracy >= 0.8
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stay on cuda" in log
