"""A small run on three colors: its configuration, its results, and a signal in a chosen step."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch.config import Config, Stage
from flowers_torch.files.tensors import safe_load
from flowers_torch.runs import recipe
from flowers_torch.training import step as step_module

SMALL: dict[str, Any] = {"arch": "test_resnet", "weights": "none", "size": 32, "batch_size": 8}
SMALL |= {"precision": "fp32", "device": "cpu", "mirror": "yes"}  # the measurement costs as much as two epochs


@pytest.fixture(scope="session")
def make_config(photo_folder: Path) -> Callable[..., Config]:
    """Makes the configuration of a small run: its stages, and changes to its options."""

    def make(*stages: Stage, **changes: Any) -> Config:
        head = Stage(name="head", epochs=2, train="head", lr=0.01, cached_views=0)
        finetune = Stage(name="finetune", epochs=2, train="layer1", lr=0.01, augment="light")
        values = SMALL | {"data": str(photo_folder)} | changes
        return Config(**values, stages=list(stages) or [head, finetune])

    return make


@pytest.fixture(scope="session")
def finished(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> recipe.Result:
    """An uninterrupted run with dropout."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return recipe.train(make_config(dropout=0.3), out, command=["train.py", "--x", "a b"])


@pytest.fixture(scope="session")
def assert_same() -> Callable[[recipe.Result | None, recipe.Result], None]:
    """Asserts that two runs ended with the same weights, history and test scores, bit for bit."""

    def untimed(result: recipe.Result) -> list[dict[str, Any]]:
        timings = ("seconds", "images_per_second")
        return [{key: value for key, value in row.items() if key not in timings} for row in result.history]

    def check(ours: recipe.Result | None, theirs: recipe.Result) -> None:
        assert ours is not None
        assert untimed(ours) == untimed(theirs)
        first, second = (safe_load(run.folder / "model.safetensors")[0] for run in (ours, theirs))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        metrics = [json.loads((run.folder / "metrics.json").read_text()) for run in (ours, theirs)]
        for name in ("temperature", "uncalibrated", "test"):
            assert metrics[0][name] == metrics[1][name], name

    return check


@pytest.fixture
def signal_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals, int], None]:
    """Sends a signal to this process at the beginning of its n-th training step."""

    def patch(number: signal.Signals, step: int) -> None:
        real, left = step_module.train_step, [step]

        def train_step(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return real(*arguments)

        monkeypatch.setattr(step_module, "train_step", train_step)

    return patch
