"""Tests that need a GPU, on the simulated one: on a real one they may fail only for what is different there."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, TESTS / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_steps(precision: str, optimizer: str, gpu: Any) -> None:
    load("training/test_state.py").test_a_step_on_a_gpu_waits_for_nothing(precision, optimizer)


def test_batches(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.png" for number in range(13)]
    for number, file in enumerate(files):
        Image.effect_noise((48 + 4 * number, 40), 80 + number).convert("RGB").save(file)
    module = load("data/loading/test_gpu_cache.py")
    for room in (0, 1 << 30):
        with monkeypatch.context() as patch:
            module.test_batches_on_a_gpu_equal_those_on_a_cpu(0, room, files, patch)
    module.test_batches_on_a_gpu_do_not_wait_for_it(files)


def test_augmentation(gpu: Any) -> None:
    module = load("data/loading/test_batches.py")
    for augmentation in module.RANDOM:
        module.test_cuda_agrees_with_the_cpu(augmentation)
