"""What tuning found is used by the next run of the same network on the same machine, and by no other."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowers_torch.accelerate import Acceleration, known_tuning
from flowers_torch.accelerate.known_tuning import KnownTuning
from flowers_torch.config import Config
from flowers_torch.models.factory import create_model
from flowers_torch.runs.experiment import Experiment
from flowers_torch.training.device import Runtime

START = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
FOUND = dataclasses.replace(START, precision="fp32", fixed=True, rate=12.5, tuned=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path))
    return tmp_path / "tuning"


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return create_model("test_resnet", num_classes=classes)


def test_the_next_run_gets_what_was_found() -> None:
    KnownTuning(START, network(), 32, True).remember(FOUND)
    known = KnownTuning(START, network(), 32, True).recall()
    assert known == dataclasses.replace(FOUND, reason="the fastest, with 12.5 img/s in an earlier run", tuned=False)
    fixed = dataclasses.replace(START, fixed=True)
    KnownTuning(fixed, network(), 32, True).remember(dataclasses.replace(FOUND, precision="bf16"))
    again = KnownTuning(fixed, network(), 32, True).recall()
    assert again and (again.precision, again.reason) == ("bf16", "for a test; 12.5 img/s in an earlier run")


def test_another_classifier_does_not_matter() -> None:
    """It is new in each run, and as wide as there are classes, but the widths are compared."""
    KnownTuning(START, network(), 32).remember(FOUND)
    model = network()
    nn.init.ones_(model.get_classifier().weight)  # type: ignore[operator]
    assert KnownTuning(START, model, 32).recall()
    assert KnownTuning(START, network(classes=4), 32).recall() is None


def weights(model: nn.Module) -> None:
    next(model.parameters()).data[0] += 1


def statistics(model: nn.Module) -> None:
    next(model.buffers()).data[0] += 1


def frozen(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


def modes(model: nn.Module) -> None:
    model.eval()


@pytest.mark.parametrize("change", [weights, statistics, frozen, modes])
def test_another_network_is_tuned(change: Callable[[nn.Module], None]) -> None:
    model = network().train()
    KnownTuning(START, model, 32).remember(FOUND)
    assert KnownTuning(START, model, 32).recall()
    change(model)
    assert KnownTuning(START, model, 32).recall() is None


def test_another_machine_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    KnownTuning(START, network(), 32).remember(FOUND)
    for name, value in (("processor_name", lambda: "another"), ("FORMAT", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(known_tuning, name, value)
            assert KnownTuning(START, network(), 32).recall() is None
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert KnownTuning(START, network(), 32).recall() is None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 64)
        assert KnownTuning(START, network(), 32).recall() is None
    assert KnownTuning(dataclasses.replace(START, precision="fp32"), network(), 32).recall() is None
    assert KnownTuning(START, network(), 64).recall() is None
    assert KnownTuning(START, network(), 32).recall()


@pytest.mark.parametrize("seconds", [-3600, 8 * 24 * 3600])
def test_old_times_are_forgotten(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    KnownTuning(START, network(), 32).remember(FOUND)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)
    assert KnownTuning(START, network(), 32).recall() is None


def test_old_files_are_removed(cache: Path) -> None:
    KnownTuning(START, network(), 32).remember(FOUND)
    (old,) = cache.iterdir()
    os.utime(old, (0, 0))
    KnownTuning(START, network(), 64).remember(FOUND)
    assert not old.exists() and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b'{"precision": "fp8", "rate": 1.0, "measured": 1.0}'])
def test_damaged_files_do_not_count(content: bytes, cache: Path) -> None:
    KnownTuning(START, network(), 32).remember(FOUND)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert KnownTuning(START, network(), 32).recall() is None


def test_the_name_of_the_file_is_the_same_in_every_process() -> None:
    code = (
        "import torch; from flowers_torch.models.factory import create_model\n"
        "from flowers_torch.accelerate.known_tuning import _file\n"
        "from flowers_torch.training.device import Runtime\n"
        "torch.set_num_threads(1); torch.manual_seed(0)\n"
        "model = create_model('test_resnet', num_classes=3)\n"
        "print(_file(Runtime(torch.device('cpu'), 'bf16', '', fixed=False), model, (32, ['a', 'b'])).name)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == known_tuning._file(START, network(), (32, ["a", "b"])).name


def test_a_run_tunes_once(make_config: Callable[..., Config], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, asked = make_config(precision="auto"), []

    def tuned(self: Acceleration, runtime: Runtime, *arguments: Any) -> Runtime:
        asked.append(runtime)
        return dataclasses.replace(FOUND, tuned=len(asked) > 1)

    monkeypatch.setattr(Acceleration, "tuned", tuned)
    for times in (1, 2, 2):  # the first had too little work to try everything
        experiment, _ = Experiment.new(config)
        assert (experiment.config.precision, len(asked)) == ("fp32", times)
    Experiment.new(dataclasses.replace(config, accelerate="auto+compile"))
    assert len(asked) == 3 and len(list(cache.iterdir())) == 2
