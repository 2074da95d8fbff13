"""Device and precision: what is chosen, and what is refused."""

import dataclasses
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.training import runtime
from flowers_torch.training.device import Runtime, choose_runtime, deterministic


def test_freed_memory_is_kept_where_the_system_can(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.libc_ver()[0] == "glibc":
        code = (
            "import resource; from flowers_torch.training import runtime; import torch\n"
            "def faults():\n"
            "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "    for _ in range(20): torch.empty(2**24).fill_(1)\n"
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
            "first = faults(); assert runtime.keep_freed_memory(); faults(); print(first, faults())"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        given_back, kept = map(int, run.stdout.split())
        assert kept < given_back / 10
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
    assert not runtime.keep_freed_memory()


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


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_the_probe_takes_the_faster_and_changes_nothing(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    real = runtime._step_seconds

    def seconds(candidate: Runtime, *arguments: object) -> float:
        real(candidate, *arguments)
        return 1.0 if candidate.precision == faster else 2.0

    monkeypatch.setattr(runtime, "_step_seconds", seconds)
    torch.manual_seed(0)
    draw = torch.rand(1)
    torch.manual_seed(0)
    open_choice = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = runtime.autotune_precision(open_choice, model, 32)
    assert chosen.precision == faster and chosen.fixed and "4.0 img/s" in chosen.reason
    assert torch.equal(torch.rand(1), draw)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_precision_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("test_resnet", num_classes=3)
    real = runtime._answer

    def answer(candidate: Runtime, *arguments: Any) -> torch.Tensor:
        return real(candidate, *arguments) * (1.5 if candidate.precision == "bf16" else 1.0)

    monkeypatch.setattr(runtime, "_answer", answer)
    open_choice = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = runtime.autotune_precision(open_choice, model, 32)
    assert chosen.precision == "fp32" and "bf16 deviates by 0.5" in chosen.reason and chosen.rate > 0


@pytest.mark.parametrize(("half", "tried"), [("bf16", ["bf16", "fp16", "fp32"]), ("fp16", ["fp16", "fp32"])])
def test_what_a_gpu_tries(half: str, tried: list[str]) -> None:
    both = runtime._candidates(Runtime(torch.device("cuda"), half, "", fixed=False))
    first = runtime._candidates(Runtime(torch.device("cuda"), half, "", channels_last=False, fixed=False))
    assert [(c.precision, c.channels_last) for c in both] == [
        *((precision, True) for precision in tried),
        *((precision, False) for precision in tried),
    ]
    assert [(c.precision, c.channels_last) for c in first] == [(precision, False) for precision in tried]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_is_tried_too_and_the_network_takes_it(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(model: torch.nn.Module) -> torch.Tensor:
        return next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)

    def candidates(start: Runtime) -> list[Runtime]:
        return [dataclasses.replace(start, channels_last=layout) for layout in (True, False)]

    def seconds(candidate: Runtime, model: torch.nn.Module, images: torch.Tensor, backward: bool) -> float:
        layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=layout)
        assert kernel(model).is_contiguous(memory_format=layout)
        return 1.0 if candidate.channels_last == channels_last else 2.0

    monkeypatch.setattr(runtime, "_candidates", candidates)
    monkeypatch.setattr(runtime, "_step_seconds", seconds)
    open_choice = Runtime(torch.device("cpu"), "fp32", "for a test", fixed=False)
    model = open_choice.place(create_model("test_resnet", num_classes=3))
    chosen = runtime.autotune_precision(open_choice, model, 32)
    assert chosen.channels_last == channels_last and "fp32 channels first" in chosen.reason
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert kernel(model).is_contiguous(memory_format=layout)


def test_two_are_tried_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = (True, True, False)
    monkeypatch.setattr(runtime, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(
        runtime,
        "_candidates",
        lambda start: [
            dataclasses.replace(start, precision=precision, channels_last=layout)
            for precision, layout in zip(("fp32", "bf16", "fp32"), layouts, strict=True)
        ],
    )
    open_choice = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = runtime.autotune_precision(open_choice, create_model("test_resnet", num_classes=3), 32)
    assert chosen.reason.count("img/s") == 2 and "no time for fp32 channels first" in chosen.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_probe_on_a_gpu() -> None:
    open_choice = choose_runtime("cuda")
    assert not open_choice.fixed and torch.backends.cuda.matmul.allow_tf32
    model = open_choice.place(create_model("resnet50", num_classes=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = runtime.autotune_precision(open_choice, model, 224)
    assert chosen.fixed and chosen.rate > 0 and "bf16" in chosen.reason + open_choice.reason
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_kernels_are_searched_on_a_gpu_only_and_not_where_runs_must_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    runtime.search_kernels(torch.device("cpu"), True)
    assert not torch.backends.cudnn.benchmark
    with deterministic(True):
        runtime.search_kernels(torch.device("cuda"), True)
        assert not torch.backends.cudnn.benchmark
    for wanted in (True, False):
        runtime.search_kernels(torch.device("cuda"), wanted)
        assert torch.backends.cudnn.benchmark == wanted


def test_a_wish_is_not_probed() -> None:
    asked = choose_runtime("cpu", "fp32")
    assert runtime.autotune_precision(asked, torch.nn.Linear(1, 1), 32) is asked


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UsageError, match="deterministic = true: put_ has no deterministic form"):
        with deterministic(True):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert torch.are_deterministic_algorithms_enabled() == before
    with deterministic(False):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
