"""Acceleration changes the speed and no result; every trick can be switched off."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import AUTO, TRICKS, Acceleration
from flowers_torch.accelerate.compiled import CompiledNetwork
from flowers_torch.accelerate.conv_bn import FusedConv2d
from flowers_torch.accelerate.fused_step import FusedUnit
from flowers_torch.errors import UsageError
from flowers_torch.files import system
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.split_model import example_inputs, split_model
from flowers_torch.training.device import Runtime
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import TrainState
from flowers_torch.training.step import predict_logits, train_step

OFF = Acceleration.parse("off")
CPU = Runtime(torch.device("cpu"), "fp32", "for a test")
SIZE = 32


def network(train: str = "all", batch_norm: str = "none") -> nn.Module:
    torch.manual_seed(0)
    model = CPU.place(create_model("test_resnet", num_classes=3))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of these images, so that training is stable
    model.train()(CPU.images(images()))
    apply_rules(model, rules_for(model, train))
    set_train_mode(model, batch_norm)
    return model


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def contains(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("text", "tricks"),
    [
        ("off", set()),
        ("auto", set(TRICKS) - {"compile"}),
        ("auto+compile", set(TRICKS)),
        ("fusion, fused_step", {"fusion", "fused_step"}),
    ],
)
def test_the_option(text: str, tricks: set[str]) -> None:
    assert Acceleration.parse(text).tricks == tricks


@pytest.mark.parametrize("text", ["", "on", "off,fusion", "fusion,fast"])
def test_unknown_tricks_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="accelerate = .*fix: use auto, off, auto\\+compile or a list of"):
        Acceleration.parse(text)


def test_off_is_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers_torch.accelerate.keep_freed_memory", None)
    model = network()
    assert OFF.training_network(model, CPU, SIZE) is model
    assert OFF.frozen_network(model, lambda network: network(images())) is model
    assert OFF.compiled(model, 8) is None
    assert OFF.tuned(CPU, model, SIZE, True).precision == "fp32"
    open_choice = dataclasses.replace(CPU, precision="bf16", fixed=False)
    assert OFF.tuned(open_choice, model, SIZE, True).precision == "fp32"
    OFF.set_allocator(CPU)


def train(
    acceleration: Acceleration, batch_norm: str, runtime: Runtime = CPU
) -> tuple[list[float], nn.Module, nn.Module]:
    model = network("layer3", batch_norm)
    groups = apply_rules(model, rules_for(model, "layer3"))
    training = TrainState(model, make_optimizer("sgd", model, groups), runtime.scaler(), runtime)
    view = training.network = acceleration.training_network(model, runtime, SIZE)
    losses = [train_step(training, images(), torch.arange(8) % 3, lr=0.01).loss for _ in range(4)]
    return losses, model, view


@pytest.mark.parametrize("batch_norm", ["none", "trained"])
def test_training_and_predictions_are_the_same_without_acceleration(batch_norm: str) -> None:
    fast_losses, fast_model, view = train(AUTO, batch_norm)
    losses, model, plain = train(OFF, batch_norm)
    assert contains(view, FusedUnit) and plain is model
    assert losses[-1] < losses[0] and fast_losses == pytest.approx(losses, rel=1e-3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fast_model.state_dict()[name], value, rtol=1e-2, atol=1e-3, msg=name)
    batches = [(images(4), torch.arange(4))]
    fast = predict_logits(AUTO.training_network(model.eval(), CPU, SIZE), batches, CPU)[0]
    torch.testing.assert_close(fast, predict_logits(model, batches, CPU)[0], rtol=1e-3, atol=1e-4)


def test_frozen_features_are_the_same_without_acceleration() -> None:
    model = network("head").eval()
    split = split_model(model, SIZE)
    assert split is not None
    copies = [
        acceleration.frozen_network(model, lambda copy: split.backbone(example_inputs(SIZE), copy))
        for acceleration in (AUTO, OFF)
    ]
    assert contains(copies[0], FusedConv2d) and copies[1] is model
    fast, plain = (split.backbone(CPU.images(images()), network) for network in copies)
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


def test_a_missing_onednn_leaves_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of torch for other systems have no `torch.ops.mkldnn._convolution_pointwise`."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    model = network().eval()
    assert AUTO.training_network(model, CPU, SIZE) is model
    fused = AUTO.frozen_network(model, lambda network: network(images()))
    assert not contains(fused, FusedConv2d)
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), model(images()), rtol=1e-3, atol=1e-4)


def test_bf16_trains_on_a_processor_for_which_onednn_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(maps: Tensor, *_: object) -> Tensor:
        if maps.dtype is torch.bfloat16:
            raise RuntimeError("mkldnn_convolution: bf16 path needs the cpu support avx512bw")
        return onednn_convolution(maps, *_)

    onednn_convolution = system.onednn_convolution()
    assert onednn_convolution is not None
    monkeypatch.setattr("flowers_torch.accelerate.conv_bn.onednn_convolution", lambda: refuse)
    monkeypatch.setattr("flowers_torch.accelerate.onednn_computes_bf16", lambda: False)
    _, _, view = train(AUTO, "none")
    assert contains(view, FusedUnit)
    losses, _, view = train(AUTO, "none", dataclasses.replace(CPU, precision="bf16"))
    assert losses[-1] < losses[0] and not contains(view, FusedUnit)


def test_compiling_is_off_by_default() -> None:
    acceleration, model = Acceleration.parse("auto+compile"), network()
    assert isinstance(acceleration.compiled(model, 8), CompiledNetwork)
    assert AUTO.compiled(model, 8) is None


def test_a_precision_of_the_user_stays() -> None:
    chosen = AUTO.tuned(CPU, network(), SIZE, True)
    assert (chosen.precision, chosen.fixed) == (CPU.precision, True) and chosen.reason.startswith(CPU.reason)


@pytest.mark.needs("linux")
def test_freed_memory_stays_with_the_process() -> None:
    code = (
        "import resource; from flowers_torch.accelerate import AUTO; import torch\n"
        "from flowers_torch.training.device import choose_runtime\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(4): torch.empty(2**24).fill_(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults(); AUTO.set_allocator(choose_runtime('cpu')); faults(); print(first, faults())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after < before / 10
