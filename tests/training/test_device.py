"""Device and precision: the choice for the machine, and options that are refused."""

import os
import subprocess
import sys

import pytest
import timm
import torch

from flowers_torch.errors import UsageError
from flowers_torch.training import device as device_module
from flowers_torch.training.device import Runtime, choose_runtime, deterministic, search_kernels


@pytest.mark.parametrize("native", [True, False])
def test_the_cpu_computes_bf16_only_where_it_is_native(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "cpu_computes_bf16", lambda: native)
    runtime = choose_runtime("cpu")
    assert (runtime.precision, runtime.fixed) == (("bf16", False) if native else ("fp32", True))


@pytest.mark.parametrize(
    ("capability", "limit", "native", "computes"),
    [
        ("AVX2", "", ("avx512_bf16",), False),  # ATEN_CPU_CAPABILITY=avx2
        ("DEFAULT", "", ("avx512_bf16",), False),
        ("AVX512", "", (), False),
        ("AVX512", "", ("avx512_bf16",), True),
        ("AVX512", "", ("amx_tile",), True),
        ("AVX512", "AVX2", ("avx512_bf16",), False),
        ("AVX512", "avx512_core", ("avx512_bf16", "amx_tile"), False),
        ("AVX512", "AVX512_CORE_BF16", ("avx512_bf16",), True),
        ("AVX512", "ALL", ("amx_tile",), True),
        ("SVE256", "", (), False),
    ],
)
def test_bf16_of_an_instruction_set(
    capability: str, limit: str, native: tuple[str, ...], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in native)
    assert device_module.cpu_computes_bf16() == computes


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cuda:99", "auto"), ("banana", "auto"), ("meta", "auto"), ("cpu", "fp16")],
)
def test_a_device_that_is_not_available_is_refused(device: str, precision: str) -> None:
    with pytest.raises(UsageError):
        choose_runtime(device, precision)


def test_a_gpu_that_cannot_be_used_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another process has it for itself."""

    def fail(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", fail)
    with pytest.raises(UsageError, match=r"cuda:1 cannot be used: .*busy or unavailable.*; fix: use another --device"):
        choose_runtime("cuda:1", "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_follows_the_precision(precision: str) -> None:
    chosen = Runtime(torch.device("cpu"), precision, "for a test")
    with chosen.autocast():
        out = torch.nn.Linear(4, 4)(torch.randn(2, 4))
    assert out.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert not chosen.scaler().is_enabled()


def test_images_and_kernels_are_channels_last() -> None:
    chosen = Runtime(torch.device("cpu"), "fp32", "for a test")
    assert chosen.images(torch.randn(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    assert chosen.images(torch.randn(2, 3)).is_contiguous()
    kernels = chosen.place(torch.nn.Conv2d(3, 4, 3)).weight
    assert kernels.is_contiguous(memory_format=torch.channels_last)


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        choose_runtime("cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_threads_do_not_exceed_the_cores_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for cores, wanted, threads in ((8, 0, 3), (2, 0, 2), (1, 4, 4)):
            monkeypatch.setattr(device_module, "usable_cores", lambda cores=cores: cores)
            choose_runtime("cpu", threads=wanted)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_kernels_are_searched_only_on_a_gpu_and_not_in_deterministic_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    search_kernels(torch.device("cpu"), True)
    assert not torch.backends.cudnn.benchmark
    with deterministic(True):
        search_kernels(torch.device("cuda"), True)
        assert not torch.backends.cudnn.benchmark
    for repeated in (True, False):
        search_kernels(torch.device("cuda"), repeated)
        assert torch.backends.cudnn.benchmark == repeated


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UsageError, match="deterministic = true: put_ has no deterministic form"):
        with deterministic(True):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert torch.are_deterministic_algorithms_enabled() == before
    with deterministic(False):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


GRADIENTS = """
import copy, sys, torch
from torch import nn
from flowers_torch.accelerate import AUTO
from flowers_torch.training.device import choose_runtime
torch.set_num_threads(1)
runtime = choose_runtime("cpu", "fp32")
for channels in (1, 2, 3, 4, 7, 8, 16):
    plain = nn.Sequential(nn.Conv2d(channels, 48, 1, 2, bias=False), nn.BatchNorm2d(48), nn.ReLU()).eval()
    placed = runtime.place(copy.deepcopy(plain))
    images = torch.randn(4, channels, 64, 64)
    view = AUTO.training_network(placed, runtime, 64, runtime.images(images))
    for network, batch in ((plain, images), (placed, runtime.images(images)), (view, runtime.images(images))):
        network.zero_grad()
        network(batch).square().sum().backward()
        gradient = network[0].weight.grad if network is not view else placed[0].weight.grad
        torch.testing.assert_close(gradient, plain[0].weight.grad, rtol=1e-3, atol=1e-3)
print("equal")
"""


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_strided_pointwise_convolutions_of_few_channels(isa: str) -> None:
    """oneDNN crashes in channels_last on CPUs without AVX-512; it can be told to compute like one of those."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


# Each with the strided 1x1 convolutions that stay in the ordinary layout.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("repvgg_a0", 1),
        ("mobileone_s1", 5),
        ("fastvit_t8", 2),
        ("fastvit_mci0", 2),  # MobileCLIP
        ("resnet50", 0),
        ("resnet18d", 0),
        ("efficientnet_b0", 0),
        ("mobilenetv3_small_050", 0),
        ("regnety_002", 0),
        ("densenet121", 0),
        ("convnext_atto", 0),
        ("repvit_m1", 0),
        ("vit_tiny_patch16_224", 0),
    ],
)
def test_which_networks_are_not_quite_in_channels_last(name: str, count: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert sum(map(device_module.breaks_in_channels_last, network.modules())) == count
