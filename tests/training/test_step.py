"""The training step against plain PyTorch, and its errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowers_torch.errors import DivergedError, ResourceError, lacks_memory
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import Distributed
from flowers_torch.training.optimization import make_average, make_optimizer, make_penalty
from flowers_torch.training.state import MAX_SKIPPED_STEPS, EpochMetrics, TrainState
from flowers_torch.training.step import (
    balanced_class_weights,
    predict_logits,
    train_epoch,
    train_step,
)

FP32 = Runtime(torch.device("cpu"), "fp32", "for a test")
BF16 = Runtime(torch.device("cpu"), "bf16", "for a test")


class Net(nn.Module):
    """A linear network with timm's `get_classifier`, and auxiliary logits on request."""

    def __init__(self, auxiliary: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(12, 3)
        self.extra = nn.Linear(12, 3) if auxiliary else None

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = x.flatten(1)
        return (self.fc(x), self.extra(x)) if self.extra and self.training else self.fc(x)


def training(model: nn.Module, optimizer: str = "sgd", runtime: Runtime = FP32, **settings: object) -> TrainState:
    groups = apply_rules(model, [("*", 1.0)])
    made = make_optimizer(optimizer, model, groups, momentum=0.0)
    return TrainState(model, made, runtime.scaler(), runtime, **settings)  # type: ignore[arg-type]


IMAGES = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 0])


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_step_equals_plain_pytorch(auxiliary: bool) -> None:
    model, plain = Net(auxiliary), Net(auxiliary)
    weights = torch.tensor([0.5, 1.0, 2.0])
    settings = {"class_weights": weights, "label_smoothing": 0.1, "clip_grad": 0.05}
    output = train_step(training(model, **settings), IMAGES, LABELS, lr=0.2)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    outputs = plain(IMAGES)
    logits, extra = outputs if auxiliary else (outputs, None)
    loss = F.cross_entropy(logits, LABELS, weight=weights, label_smoothing=0.1)
    total = loss
    if auxiliary:
        total = loss + 0.4 * F.cross_entropy(extra, LABELS, weight=weights, label_smoothing=0.1)
    total.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
    optimizer.step()
    assert output.loss == pytest.approx(loss.item())
    assert output.correct == int((logits.argmax(1) == LABELS).sum())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, plain.get_parameter(name), atol=1e-7), name


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_class_probabilities_are_accepted_as_labels(micro_batch: int) -> None:
    settings = {"class_weights": torch.tensor([0.5, 1.0, 2.0]), "label_smoothing": 0.1}
    ours, theirs = Net(), Net()
    probabilities = F.one_hot(LABELS, 3).float()
    found = train_step(training(ours, micro_batch=micro_batch, **settings), IMAGES, probabilities, lr=0.2)
    expected = train_step(training(theirs, **settings), IMAGES, LABELS, lr=0.2)
    assert found.loss == pytest.approx(expected.loss) and found.correct == expected.correct
    torch.testing.assert_close(ours.fc.weight, theirs.fc.weight)
    mixed = 0.25 * probabilities + 0.75 * probabilities.flip(0)
    loss = train_step(training(Net()), IMAGES, mixed, lr=0.2).loss
    logits = Net()(IMAGES).detach()
    parts = [F.cross_entropy(logits, labels) for labels in (LABELS, LABELS.flip(0))]
    assert loss == pytest.approx(float(0.25 * parts[0] + 0.75 * parts[1]))


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_before_the_update(poison: str) -> None:
    model = Net()
    state = training(model, "adamw")
    images = IMAGES.clone()
    if poison == "loss":
        images[2, 0, 0, 0] = torch.nan
    else:
        model.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = model.fc.weight.detach().clone()
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train_step(state, images, LABELS, lr=0.01)
    assert torch.equal(model.fc.weight, before)


def test_epoch_metrics_are_means_over_images_not_batches() -> None:
    state, metrics = training(Net()), EpochMetrics()
    batches = [(IMAGES, LABELS, torch.arange(5)), (IMAGES[:1], LABELS[:1], torch.arange(1))]
    rates = list(train_epoch(state, batches, metrics, 7, lambda step: step * 0.0 + 1e-9))
    assert len(rates) == 2 and metrics.images == 6
    with torch.no_grad():
        logits = Net()(torch.cat([IMAGES, IMAGES[:1]]))
    expected = F.cross_entropy(logits, torch.cat([LABELS, LABELS[:1]]))
    assert metrics.mean_loss == pytest.approx(float(expected), rel=1e-4)


def test_steps_are_numbered_within_the_stage() -> None:
    steps: list[int] = []

    def rate(step: int) -> float:
        steps.append(step)
        return 0.1

    list(train_epoch(training(Net()), [(IMAGES, LABELS, LABELS)] * 3, EpochMetrics(), 7, rate))
    assert steps == [7, 8, 9]


@pytest.mark.parametrize("runtime", [FP32, BF16], ids=lambda runtime: runtime.precision)
def test_mixed_precision_keeps_float32_parameters_and_learns(runtime: Runtime) -> None:
    model = Net()
    state = training(model, "adamw", runtime)
    losses = [train_step(state, IMAGES, LABELS, lr=0.05).loss for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_fp16_with_loss_scaling_equals_the_loop_of_pytorchs_documentation(optimizer: str) -> None:
    """In real fp16, on a CPU. The scale starts so high that gradients overflow and some steps are skipped."""
    ours, plain = (Net() for _ in range(2))
    fp16 = Runtime(torch.device("cpu"), "fp16", "for a test")
    groups = apply_rules(ours, [("*", 1.0)])
    state = TrainState(ours, make_optimizer(optimizer, ours, groups), fp16.scaler(), fp16, clip_grad=0.5)
    assert state.scaler.is_enabled()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    other = make_optimizer(optimizer, plain, apply_rules(plain, [("*", 1.0)]))
    skipped = []
    for _ in range(12):
        train_step(state, IMAGES, LABELS, lr=0.01)
        for group in other.param_groups:
            group["lr"] = 0.01
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(plain(IMAGES), LABELS)
        scaler.scale(loss).backward()
        scaler.unscale_(other)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        before = scaler.get_scale()
        scaler.step(other)
        scaler.update()
        other.zero_grad()
        skipped.append(scaler.get_scale() < before)
        assert state.scaler.get_scale() == scaler.get_scale()
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-6, atol=1e-7)
    assert 2 <= sum(skipped) <= 8 and not skipped[-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_on_cuda(precision: str) -> None:
    runtime = Runtime(torch.device("cuda"), precision, "for a test")
    model = runtime.place(Net())
    state = training(model, "adamw", runtime)
    losses = [train_step(state, IMAGES, LABELS, lr=0.05).loss for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_prediction_keeps_order_and_leaves_no_graph() -> None:
    model = Net().train()
    batches = [(IMAGES[:3], LABELS[:3], LABELS[:3]), (IMAGES[3:], LABELS[3:], LABELS[3:])]
    logits, labels = predict_logits(model, batches, FP32)
    assert torch.equal(labels, LABELS) and not logits.requires_grad
    assert torch.allclose(logits, Net()(IMAGES), atol=1e-6)


def test_balanced_class_weights() -> None:
    assert torch.allclose(balanced_class_weights([0, 0, 0, 1], 2), torch.tensor([4 / 6, 4 / 2]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 9])
def test_micro_batches_add_up_to_the_whole_batch(micro_batch: int, weighted: bool) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    whole, parts = Net(), Net()
    settings = {"class_weights": weights, "label_smoothing": 0.1}
    first = train_step(training(whole, **settings), IMAGES, LABELS, lr=0.2)
    second = train_step(training(parts, micro_batch=micro_batch, **settings), IMAGES, LABELS, lr=0.2)
    assert first.loss == pytest.approx(second.loss) and first.correct == second.correct
    for name, parameter in whole.named_parameters():
        assert torch.allclose(parameter, parts.get_parameter(name), atol=1e-6), name


def test_a_penalty_joins_the_gradient_and_not_the_loss() -> None:
    plain, penalized = Net(), Net()
    start = penalized.fc.weight.detach().clone()
    first = train_step(training(plain), IMAGES, LABELS, lr=0.1)
    second = train_step(training(penalized, penalty=make_penalty(penalized, l2=0.5)), IMAGES, LABELS, lr=0.1)
    assert first.loss == pytest.approx(second.loss) and first.correct == second.correct
    assert torch.allclose(plain.fc.weight - penalized.fc.weight, 0.1 * start, atol=1e-6)


def test_the_average_follows_each_step_and_is_evaluated() -> None:
    model = Net()
    made = training(model, average=make_average(model, 0.9))
    for _ in range(3):
        train_step(made, IMAGES, LABELS, lr=0.2)
    assert made.average is not None and int(made.average.n_averaged) == 3
    assert made.evaluated is made.average.module
    assert not torch.equal(made.average.module.fc.weight, model.fc.weight)


def test_divergence_names_the_step_and_the_images() -> None:
    images = IMAGES.clone()
    images[2] = torch.nan
    batches = [(IMAGES, LABELS, torch.arange(5)), (images, LABELS, torch.arange(5, 10))]
    names = [f"{n}.jpg" for n in range(10)]
    epoch = train_epoch(training(Net()), batches, EpochMetrics(), 7, lambda step: 1e-3, names.__getitem__)
    assert next(epoch) == 1e-3
    with pytest.raises(DivergedError, match=r"learning rate 0\.001 in step 9 of the stage, on 5\.jpg, 6\.jpg"):
        next(epoch)


def test_endless_skipping_by_loss_scaling_is_noticed() -> None:
    model = Net()
    state = training(model, "adamw")
    state.scaler = torch.amp.GradScaler("cpu")
    before = model.fc.weight.detach().clone()
    spoil = model.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    for _ in range(MAX_SKIPPED_STEPS - 1):
        train_step(state, IMAGES, LABELS, lr=0.01)
    assert torch.equal(model.fc.weight, before)
    spoil.remove()
    train_step(state, IMAGES, LABELS, lr=0.01)
    assert state.skipped == 0 and not torch.equal(model.fc.weight, before)
    model.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    for _ in range(MAX_SKIPPED_STEPS - 1):
        train_step(state, IMAGES, LABELS, lr=0.01)
    with pytest.raises(DivergedError, match="20 steps in a row had gradients beyond the range of fp16"):
        train_step(state, IMAGES, LABELS, lr=0.01)


class Cramped(Net):
    """Has memory for `room` images at a time."""

    room = 3
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if len(x) > self.room and self.training:
            raise self.error
        return super().forward(x)


# What torch 2 says where there is no memory, by who asked for it.
NO_MEMORY = {
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
    "CUDA": torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    "torch on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "torch on Windows": RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("name", NO_MEMORY)
def test_a_lack_of_memory_is_recognized_whoever_reports_it(name: str) -> None:
    assert lacks_memory(NO_MEMORY[name])
    cramped = Cramped()
    cramped.error = NO_MEMORY[name]
    state = training(cramped)
    train_step(state, IMAGES[:4], LABELS[:4], 0.1)
    assert state.micro_batch == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu"),
        ValueError("out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_raised_as_they_are(error: Exception) -> None:
    cramped = Cramped()
    cramped.error = error
    with pytest.raises(type(error)) as found:
        train_step(training(cramped), IMAGES[:4], LABELS[:4], 0.1)
    assert found.value is error


def test_out_of_memory_behind_the_gradients_takes_no_step_twice() -> None:
    """An optimizer may have moved some weights already, and a smaller batch would not help it."""
    state = training(Net(), "adamw")
    calls: list[int] = []

    def fail(*arguments: object) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    state.optimizer.register_step_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        train_step(state, IMAGES, LABELS, 0.1)
    assert len(calls) == 1 and state.micro_batch == 0


def test_out_of_memory_halves_the_micro_batch_and_changes_no_gradient(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    cramped, roomy = training(Cramped()), training(Net())
    result = train_step(cramped, images, labels, 0.1)
    assert result.loss == pytest.approx(train_step(roomy, images, labels, 0.1).loss)
    for name, parameter in cramped.model.named_parameters():
        assert torch.allclose(parameter, roomy.model.get_parameter(name), atol=1e-6), name
    assert cramped.micro_batch == 2  # 8, 4, 2
    assert caplog.text.count("WARNING  out of memory") == 2 and "gradients of 8 added up" in caplog.text


def test_out_of_memory_with_two_images_is_an_error() -> None:
    model = Cramped()
    model.room = 1
    with pytest.raises(ResourceError, match=r"with 2 photos at a time \(CUDA out of memory.*\); fix: lower --size"):
        train_step(training(model), IMAGES[:4], LABELS[:4], 0.1)


class Two(Distributed):
    """One of two processes; the other one computes the same."""

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


def test_out_of_memory_in_one_of_several_processes_ends_it() -> None:
    cramped = training(Cramped())
    cramped.distributed = Two(size=2)
    with pytest.raises(ResourceError, match="out of memory with 4 photos at a time"):
        train_step(cramped, IMAGES[:4], LABELS[:4], 0.1)
