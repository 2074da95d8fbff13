"""Device and precision: what is chosen, and what is refused."""

import pytest
import torch

from flowers_torch.errors import UsageError
from flowers_torch.training import runtime
from flowers_torch.training.runtime import Runtime, choose_runtime


@pytest.mark.parametrize("native", [True, False])
def test_the_cpu_computes_bf16_only_where_it_is_native(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_cpu_computes_bf16", lambda: native)
    assert choose_runtime("cpu").precision == ("bf16" if native else "fp32")


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cuda:99", "auto"), ("banana", "auto"), ("meta", "auto"), ("cpu", "fp16")],
)
def test_what_is_not_there_is_refused(device: str, precision: str) -> None:
    with pytest.raises(UsageError):
        choose_runtime(device, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_follows_the_precision(precision: str) -> None:
    chosen = Runtime(torch.device("cpu"), precision, "for a test")
    with chosen.autocast():
        out = torch.nn.Linear(4, 4)(torch.randn(2, 4))
    assert out.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert not chosen.scaler().is_enabled()


def test_images_take_the_layout() -> None:
    images = torch.randn(2, 3, 8, 8)
    for channels_last in (True, False):
        chosen = Runtime(torch.device("cpu"), "fp32", "for a test", channels_last)
        assert chosen.images(images).is_contiguous(memory_format=torch.channels_last) == channels_last


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        choose_runtime("cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
