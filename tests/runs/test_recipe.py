"""A run from its images to its folder; stopped, killed and resumed."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import start_python

from flowers_torch.cli import main
from flowers_torch.commands.train import start_from
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config, to_toml
from flowers_torch.data.loading import batches
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import EpochBatchSampler
from flowers_torch.errors import DataError, DivergedError, ModelFileError, StoppedError, UsageError
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.runs import recipe, stage
from flowers_torch.runs.dataset import choose_splits, open_images
from flowers_torch.runs.folder import FILES
from flowers_torch.training import step as step_module
from flowers_torch.training.checkpoint import read_checkpoint

ROOT = Path(__file__).parent.parent.parent
MakeConfig = Callable[..., Config]
AssertSame = Callable[[recipe.Result | None, recipe.Result], None]
SignalInStep = Callable[[signal.Signals, int], None]


def test_it_learns_colors(finished: recipe.Result) -> None:
    assert finished.test.accuracy >= 0.9
    rows = [(row["stage"], row["epoch"]) for row in finished.history]
    assert rows == [("head", 1), ("head", 2), ("finetune", 1), ("finetune", 2)]


def test_the_run_folder(finished: recipe.Result, make_config: MakeConfig) -> None:
    folder = finished.folder
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    others = {"resume.safetensors", "resume.previous.safetensors", "bad_files.jsonl"}
    others |= {"label_issues.json", "figures/learning_curve.svg"}  # the report command writes these
    others |= {name for name in FILES if name.startswith(("exported/", "packed/"))}  # and other commands these
    assert found - {".lock"} == set(FILES) - others
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
    assert load_config(file=str(folder / "config.toml")) == make_config(dropout=0.3)
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 4
    words = re.findall(r"^[\d-]+ [\d:,]+ (\w+)", (folder / "log.txt").read_text(), re.M)
    assert words[0] == "flowers_torch" and words.count("data") == 1 and words[-2:] == ["report", "next"]
    assert words.index("network") < words.index("stage") < words.index("test")


def test_the_same_seed_gives_the_same_weights(
    finished: recipe.Result, make_config: MakeConfig, tmp_path: Path, assert_same: AssertSame
) -> None:
    assert_same(recipe.train(make_config(dropout=0.3, workers=2), tmp_path / "same"), finished)
    other = recipe.train(make_config(dropout=0.3, seed=1), tmp_path / "other")
    weights = [safe_load(run.folder / "model.safetensors")[0] for run in (finished, other)]
    assert not torch.equal(weights[0]["fc.out.weight"], weights[1]["fc.out.weight"])


def test_an_earlier_run_is_not_overwritten(finished: recipe.Result, make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match="not empty.*--overwrite"):
        recipe.train(make_config(), finished.folder)


def test_class_weights_mixup_and_a_last_batch_of_one(make_config: MakeConfig, tmp_path: Path) -> None:
    """39 training images in batches of 19 leave one over."""
    config = make_config(batch_size=19, class_weights="balanced")
    config.stages[1] = dataclasses.replace(config.stages[1], mixup=0.4)
    result = recipe.train(config, tmp_path / "run")
    assert result.test.images >= 3 and result.test.accuracy >= 0.8


def test_a_new_run_from_the_weights_of_another(finished: recipe.Result, tmp_path: Path) -> None:
    config = load_config(**start_from(str(finished.folder), {"seed": 3}))
    weights = str(finished.folder / "model.safetensors")
    own = load_config(file=str(finished.folder / "config.toml"))
    assert config == dataclasses.replace(own, weights=weights, seed=3)
    result = recipe.train(config, tmp_path / "run")
    assert result.history[0]["train_loss"] < finished.history[0]["train_loss"]


# One stage of each kind. Together they hold everything that a run carries from step to step.
KINDS = [
    Stage(name="fit", train="head", optimizer="lbfgs", augment="mirror"),
    Stage(name="cached", train="head", epochs=2, lr=0.01, cached_views=2, augment="crop", optimizer="rmsprop"),
    Stage(name="plateau", train="layer4", epochs=3, lr=0.01, schedule="plateau", patience=1, optimizer="sgd"),
    Stage(name="mixed", epochs=2, lr=0.003, augment="crop", mixup=0.4, warmup_epochs=0.5, layer_decay=0.5),
    Stage(name="per image", epochs=1, lr=0.003, augment="rand", l1=1e-4, l2=1e-3, weight_decay=0.05, patience=1),
]
OPTIONS: dict[str, Any] = {"ema": 0.9, "label_smoothing": 0.1, "clip_grad": 1.0, "class_weights": "balanced"}


@pytest.fixture(scope="module")
def every_kind(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> recipe.Result:
    return recipe.train(make_config(*KINDS, **OPTIONS), tmp_path_factory.mktemp("runs") / "kinds")


SLOW_STEPS = [pytest.param(step, marks=pytest.mark.slow) for step in (5, 16)]  # in stages of 1, 8 and 21


@pytest.mark.parametrize("step", [1, 8, 21, 28, 38, *SLOW_STEPS])
def test_a_stopped_run_resumes_exactly_in_every_kind_of_stage(
    every_kind: recipe.Result,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_in_step: SignalInStep,
    assert_same: AssertSame,
    step: int,
) -> None:
    number = signal.SIGTERM if step % 2 else signal.SIGINT
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signal_in_step(number, step)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}.*--resume") as caught:
        recipe.train(make_config(*KINDS, **OPTIONS), tmp_path / "run")
    monkeypatch.undo()
    assert caught.value.exit_code == 128 + number
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert_same(recipe.resume(tmp_path / "run"), every_kind)


KILL = """
import os, signal, sys
from flowers_torch.runs import recipe
from flowers_torch.config_file import load_config
from flowers_torch.training import step
real, left = step.train_step, [int(sys.argv[3])]
def train_step(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
step.train_step = train_step
recipe.train(load_config(file=sys.argv[1]), sys.argv[2])
"""


@pytest.mark.needs("signals")
@pytest.mark.parametrize("steps", [0, 27])
def test_a_killed_run_resumes_exactly(
    every_kind: recipe.Result, make_config: MakeConfig, tmp_path: Path, assert_same: AssertSame, steps: int
) -> None:
    """SIGKILL behind a fitted stage and within another one, with a checkpoint after every step."""
    config = make_config(*KINDS, **OPTIONS, checkpoint_minutes=0.0)
    (tmp_path / "c.toml").write_text(to_toml(config, "to be killed"))
    words = (tmp_path / "c.toml", tmp_path / "run", str(steps))
    killed = start_python(KILL, *words, output=tmp_path / "output")
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert (tmp_path / "run" / "resume.safetensors").is_file()
    assert_same(recipe.resume(tmp_path / "run"), every_kind)


def test_a_signal_during_the_test_is_followed_by_the_same_test(
    finished: recipe.Result,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same: AssertSame,
) -> None:
    real = recipe.write_results

    def write_results(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StoppedError, match="before the test was over.*--resume"),
    ):
        patch.setattr(recipe, "write_results", write_results)
        recipe.train(make_config(dropout=0.3), tmp_path / "run")
    assert_same(recipe.resume(tmp_path / "run"), finished)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_disappears_during_training_costs_no_step(
    finished: recipe.Result,
    photo_folder: Path,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    assert_same: AssertSame,
    workers: int,
) -> None:
    """The error names it and the steps are saved. With the image restored the run ends as it would have."""
    shutil.copytree(photo_folder, tmp_path / photo_folder.name)
    config = make_config(data=str(tmp_path / photo_folder.name), dropout=0.3, workers=workers)
    real, steps = stage.train_epoch, []

    def epoch(*arguments: Any) -> Any:
        for rate in real(*arguments):
            steps.append(rate)
            if len(steps) == len(order):  # workers read ahead, but not into the next epoch
                gone.rename(tmp_path / "elsewhere.png")
            yield rate

    dataset = open_images(config).dataset
    train = choose_splits(dataset, config)["train"]
    order = EpochBatchSampler(len(train), 8, seed=0, shuffle=True)
    order.epoch = 1
    last = [position for batch in order for _, position in batch][-1]
    gone = dataset.root / dataset.paths[train[last]]
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "images", lambda *arguments: None)  # each epoch reads the files again
        patch.setattr(stage, "train_epoch", epoch)
        with pytest.raises(DataError, match=gone.name):
            recipe.train(config, tmp_path / "run")
    saved = read_checkpoint(tmp_path / "run" / "resume.safetensors").state
    assert (saved.epoch, saved.step) == (1, len(order) - 1)  # all but the batch of that image

    with (
        caplog.at_level("INFO", logger="flowers_torch"),
        pytest.raises(DataError, match="1 missing, 0 edited"),
    ):
        recipe.resume(tmp_path / "run")
    assert "first missing: " in caplog.text
    shutil.copytree(tmp_path / "run", tmp_path / "allowed")
    (tmp_path / "elsewhere.png").rename(gone)
    assert_same(recipe.resume(tmp_path / "run"), finished)

    gone.unlink()
    allowed = recipe.resume(tmp_path / "allowed", allow_data_change=True)
    assert allowed is not None
    assert [row["changes"] for row in allowed.history] == [0, 1, 1, 1]
    metrics = json.loads((tmp_path / "allowed" / "metrics.json").read_text())
    assert metrics["changes"] == [{"stage": 0, "epoch": 1, "missing": 1, "edited": 0, "added": 0}]
    splits = json.loads((tmp_path / "allowed" / "split.json").read_text())["splits"]
    names = {Path(name).name for name in splits["train"] if Path(name).parent == gone.parent}
    assert gone.name not in names


def test_resuming_with_other_options(
    finished: recipe.Result,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    signal_in_step: SignalInStep,
    assert_same: AssertSame,
) -> None:
    """Options that change nothing are accepted; others are refused, or allowed and recorded."""
    signal_in_step(signal.SIGTERM, 8)
    with pytest.raises(StoppedError):
        recipe.train(make_config(dropout=0.3), tmp_path / "run")
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert_same(recipe.resume(tmp_path / "run", {"workers": 2}), finished)

    with caplog.at_level("INFO", "flowers_torch"), pytest.raises(UsageError, match="--allow-config-change"):
        recipe.resume(tmp_path / "copy", {"batch_size": 6})
    assert "batch_size  8 -> 6" in caplog.text
    other = recipe.resume(tmp_path / "copy", {"batch_size": 6}, allow_config_change=True)
    assert other is not None
    assert [row["changes"] for row in other.history] == [0, 1, 1, 1]  # the second epoch started again
    recorded = json.loads((tmp_path / "copy" / "metrics.json").read_text())["changes"]
    assert recorded == [{"stage": 0, "epoch": 1, "options": "batch_size 8 -> 6"}]
    assert load_config(file=str(tmp_path / "copy" / "config.toml")).batch_size == 6


def test_a_finished_run_has_nothing_to_resume(finished: recipe.Result) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    assert recipe.resume(finished.folder) is None
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}


def test_without_a_checkpoint_nothing_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="holds no checkpoint"):
        recipe.resume(tmp_path)


def test_damaged_best_weights_are_found_before_training_continues(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_in_step: SignalInStep
) -> None:
    signal_in_step(signal.SIGTERM, 13)
    with pytest.raises(StoppedError):
        recipe.train(make_config(), tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"x" * 99)
    monkeypatch.setattr(step_module, "train_step", None)
    with pytest.raises(ModelFileError, match="model.safetensors"):
        recipe.resume(tmp_path / "run")


def test_a_validation_loss_that_was_never_finite_is_an_error(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.history_row
    loss = {"val_calibrated_loss": float("nan")}
    monkeypatch.setattr(stage, "history_row", lambda *arguments: real(*arguments) | loss)
    with pytest.raises(DivergedError, match="the validation loss was never finite"):
        recipe.train(make_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_spoils_neither_results_nor_report(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.history_row

    def row(*arguments: Any) -> dict[str, Any]:
        made = real(*arguments) | {"train_loss": float("inf")}
        nan = {"val_loss": float("nan"), "val_calibrated_loss": float("nan")}
        return made | nan if made["stage"] == "head" else made

    monkeypatch.setattr(stage, "history_row", row)
    folder = tmp_path / "run"
    flags = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--precision", "fp32"]
    flags += ["--device", "cpu", "--data", str(photo_folder), "--epochs", "2,2", "--out", str(folder)]
    assert main(["train", *flags]) == 0
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"]["train_loss"] is None
    assert main(["report", str(folder)]) == 0
    assert '<h2 id="learning-title">' in (folder / "report.html").read_text()


def test_a_run_as_on_a_gpu_is_the_same_run(
    finished: recipe.Result,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_in_step: SignalInStep,
    assert_same: AssertSame,
) -> None:
    """Images stay on the device, steps are read three at a time, and a signal comes between two readings."""
    monkeypatch.setitem(stage.READ_INTERVAL, "cpu", 3)
    monkeypatch.setattr(batches, "cache_bytes_on", lambda device: 1 << 30)
    signal_in_step(signal.SIGTERM, 8)  # and in no later step
    with pytest.raises(StoppedError):
        recipe.train(make_config(dropout=0.3), tmp_path / "run")
    saved = read_checkpoint(tmp_path / "run" / "resume.safetensors").state
    assert (saved.epoch, saved.step, saved.metrics.images) == (1, 3, 24)
    assert_same(recipe.resume(tmp_path / "run"), finished)
    assert "stay on cpu" in (tmp_path / "run" / "log.txt").read_text()


def test_deterministic_algorithms_are_set_before_the_network_is_tried(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS reads its setting in its first call, which tries out the network."""
    seen: list[Any] = []
    real = recipe.Experiment.new

    def new(*arguments: Any) -> Any:
        seen.extend([torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")])
        return real(*arguments)

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(recipe.Experiment, "new", new)
    head = Stage(name="head", epochs=1, train="head", lr=0.01, cached_views=0)
    recipe.train(make_config(head, deterministic=True), tmp_path / "run")
    assert seen == [True, ":4096:8"] and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "fp16", "ema": 0.9, "clip_grad": 1.0}, {"precision": "auto"}, {"accelerate": "off"}],
    ids=str,
)
def test_a_run_on_a_gpu(options: dict[str, Any], make_config: MakeConfig, tmp_path: Path) -> None:
    result = recipe.train(make_config(**{"device": "cuda", **options}), tmp_path / "run")
    assert len(result.history) == 4 and result.test.accuracy >= 0.8
    assert all(row["train_loss"] < float("inf") for row in result.history)
    assert "stay on cuda" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_the_demo_run(tmp_path: Path) -> None:
    """README's first command: at most 90 s on two cores and 0.95 on its own test split."""
    command = [sys.executable, str(ROOT / "train.py"), "--arch", "inception_v3", "--data", "demo"]
    started = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    print(f"{time.monotonic() - started:.1f} s")
    metrics = json.loads((tmp_path / "runs" / "demo-inception_v3-1" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= 0.95


def test_a_stage_that_the_configuration_lacks(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_in_step: SignalInStep
) -> None:
    signal_in_step(signal.SIGTERM, 1)
    with pytest.raises(StoppedError):
        recipe.train(make_config(), tmp_path / "run")
    monkeypatch.undo()
    path = tmp_path / "run" / "resume.safetensors"
    tensors, metadata = safe_load(path)
    metadata["state"]["stage"] = 3
    safe_save(tensors, path, metadata)
    with pytest.raises(ModelFileError, match="is in stage 3 of 2"):
        recipe.resume(tmp_path / "run")


def test_a_report_that_fails_costs_neither_the_run_nor_its_end(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(recipe, "write_run_report", fail)
    with caplog.at_level("INFO", "flowers_torch"):
        recipe.train(make_config(Stage(name="head", epochs=1, train="head")), tmp_path / "run")
    assert "note     report: the page left out: nothing to divide" in caplog.text
    assert "next     flowers-torch predict" in caplog.text and (tmp_path / "run" / "model.safetensors").is_file()
