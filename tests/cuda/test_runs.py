"""Whole runs on the simulated GPU, from photos to the report: they end as those of the CPU, and resume."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch.accelerate import precision
from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.errors import StoppedError
from flowers_torch.runs import recipe, stage
from flowers_torch.runs.lr_find import find_learning_rate
from flowers_torch.training import step as step_module

HEAD = Stage("head", 1, "head", lr=0.01, cached_views=0)
FINETUNE = Stage("finetune", 2, "layer1", lr=0.01, augment="crop", mixup=0.2)
FITTED = Stage("head", 1, "head", optimizer="lbfgs", augment="mirror")


def config(data: Path, device: str, *stages: Stage, **changes: Any) -> Config:
    values: dict[str, Any] = {"arch": "test_resnet", "weights": "none", "size": 32, "batch_size": 8, "workers": 0}
    values |= {"precision": "fp32", "accelerate": "off", "data": str(data), "device": device} | changes
    return Config(**values, stages=[dataclasses.replace(each) for each in stages])


def tune(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Makes a step of tuning take so long by precision, and every run long enough to try them all."""
    monkeypatch.setattr(precision, "SHORT_RUN_SECONDS", 0.0)
    monkeypatch.setattr(precision, "TUNING_SECONDS", float("inf"))  # the simulation is slow
    monkeypatch.setattr(precision, "MAX_FRACTION", 1e9)
    monkeypatch.setitem(precision.BATCH_SIZES, "cuda", (2, 2))
    monkeypatch.setattr(precision, "_step_seconds", lambda candidate, *_: seconds[candidate.precision])


def compile_nothing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the compiler by one that leaves a function as it is; the sizes of the batches that it is called with."""
    sizes: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: lambda x: sizes.append(len(x)) or forward(x))
    return sizes


def watch_searches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether cuDNN would time its kernels, at each training batch and each pass that only predicts."""
    searches: list[bool] = []
    monkeypatch.setattr(step_module, "search_kernels", lambda device, repeated: searches.append(repeated))
    return searches


def losses(result: Any) -> list[float]:
    assert result is not None
    return [*(row[name] for row in result.history for name in ("train_loss", "val_loss")), result.test.loss]


@pytest.fixture(scope="module")
def few_photos(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos of each class: the simulation takes its time for each operation."""
    folder = tmp_path_factory.mktemp("few")
    shutil.copytree(photo_folder, folder / "photos", ignore=shutil.ignore_patterns("1[2-9].png"))
    return folder / "photos"


RUNS: dict[str, tuple[list[Stage], dict[str, Any]]] = {
    "two stages": ([HEAD, FINETUNE], {"ema": 0.9, "clip_grad": 1.0, "class_weights": "balanced", "mirror": "yes"}),
    "fitted head": ([FITTED], {}),  # with the measurement whether a mirror changes the class
}


@pytest.fixture(params=RUNS)
def on_the_cpu(request: pytest.FixtureRequest, few_photos: Path, tmp_path: Path) -> tuple[str, recipe.Result]:
    """The name of a run and its result outside of the simulation, which slows down every device."""
    stages, options = RUNS[request.param]
    return request.param, recipe.train(config(few_photos, "cpu", *stages, **options), tmp_path / "cpu")


def test_a_run_ends_as_on_the_cpu(
    on_the_cpu: tuple[str, recipe.Result],
    few_photos: Path,
    tmp_path: Path,
    gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Precision is tuned, with times that let fp32 win. The compiler is left out: it knows no simulated device."""
    name, here = on_the_cpu
    stages, options = RUNS[name]
    compiled, searched = compile_nothing(monkeypatch), watch_searches(monkeypatch)
    options = options | {"precision": "auto", "accelerate": "precision,compile"}
    tune(monkeypatch, {"bf16": 0.9, "fp16": 0.8, "fp32": 0.5})
    there = recipe.train(config(few_photos, "cuda", *stages, **options), tmp_path / "cuda")
    assert "device   cuda, fp32 (fastest of bf16 2.2 img/s, fp16 2.5 img/s, fp32 (TF32) 4.0 img/s)" in caplog.messages
    assert set(compiled) == ({8} if len(stages) == 2 else set())  # the last batch of an epoch is smaller
    assert searched and not any(searched)  # the run is short
    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    assert (there.folder / "report.html").is_file()
    log = (there.folder / "log.txt").read_text()
    assert "left out" not in log and ("stay on cuda" in log) == (len(stages) == 2)


def test_a_run_in_fp16_resumes_and_opens_on_a_cpu(
    few_photos: Path, tmp_path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal comes between two readings of the loss. In the end the machine has lost its GPU."""
    monkeypatch.setitem(stage.READ_INTERVAL, "cuda", 3)
    real, left = step_module.train_step, [0]

    def train_step(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(step_module, "train_step", train_step)
    monkeypatch.setattr(stage, "SEARCH_BATCHES", 1)
    searched = watch_searches(monkeypatch)
    made = config(few_photos, "cuda", HEAD, FINETUNE, precision="fp16", mirror="yes")
    whole = recipe.train(made, tmp_path / "whole")
    assert set(searched) == {True, False}  # the last batch of an epoch is smaller
    left[0] = 5
    with pytest.raises(StoppedError):
        recipe.train(made, tmp_path / "run")
    resumed = recipe.resume(tmp_path / "run")
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    photo = str(next(few_photos.rglob("*.png")))
    assert main(["predict", str(tmp_path / "run"), photo]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--save"]) == 0
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["test"]["loss"] == pytest.approx(whole.test.loss, rel=0.05)


def test_a_sweep_of_learning_rates(few_photos: Path, gpu: Any) -> None:
    found = find_learning_rate(config(few_photos, "cuda", FINETUNE, mirror="yes"), 0, 1e-5, 0.1, 12)
    assert len(found.rates) >= 10
