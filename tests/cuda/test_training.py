"""Each kind of training step on the simulated GPU: nothing waits, and the numbers are those of the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flowers_torch.data.loading import batches as batches_module
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, TrainingBatches, batch_augmentation
from flowers_torch.data.loading.gpu_cache import CachedFeatureBatches
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import EpochBatchSampler, TransformedImages, make_loader
from flowers_torch.data.loading.resize import AS_PREDICTED, resize_transform, resized_side
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.device import Runtime
from flowers_torch.training.optimization import make_average, make_optimizer, make_penalty
from flowers_torch.training.state import EpochMetrics, TrainState
from flowers_torch.training.step import train_epoch

SIZE = 16
WEIGHTS = torch.tensor([0.5, 1.0, 2.0])
# Settings of the state, the rules of what trains, and whether targets are class probabilities.
KINDS: dict[str, dict[str, Any]] = {
    "everything": {},
    "head": {"rules": [("fc.*", 1.0), ("*", 0.0)]},
    "weighted and clipped": {"class_weights": WEIGHTS, "label_smoothing": 0.1, "clip_grad": 0.05},
    "micro-batches": {"micro_batch": 2},
    "average": {"ema": 0.9},
    "penalty": {"l1": 1e-4, "l2": 1e-3},
    "mixed": {"probabilities": True, "class_weights": WEIGHTS},
    "auxiliary": {"auxiliary": True},
}


class Net(nn.Module):
    """A convolution, a batch norm, a classifier, and auxiliary logits on request."""

    def __init__(self, auxiliary: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.extra = nn.Linear(4, 3) if auxiliary else None

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return (self.fc(x), self.extra(x)) if self.extra and self.training else self.fc(x)


def train_state(
    runtime: Runtime,
    optimizer: str = "adamw",
    rules: Any = (("*", 1.0),),
    ema: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    auxiliary: bool = False,
    class_weights: Tensor | None = None,
    **settings: Any,
) -> TrainState:
    model = runtime.place(Net(auxiliary))
    made = make_optimizer(optimizer, model, apply_rules(model, rules), 0.01)
    settings |= {"penalty": make_penalty(model, l1, l2), "average": make_average(model, ema), "read_interval": 20}
    weights = None if class_weights is None else class_weights.to(runtime.device)
    return TrainState(model, made, runtime.scaler(), runtime, weights, **settings)


def trained(runtime: Runtime, optimizer: str, gpu: Any, probabilities: bool = False, **kind: Any) -> list[Tensor]:
    """Weights, averaged weights and metrics after five steps, during which nothing may wait."""
    state, generator = train_state(runtime, optimizer, **kind), torch.Generator().manual_seed(1)
    images, labels = torch.randn(19, 3, 8, 8, generator=generator), torch.randint(3, (19,), generator=generator)
    targets = 0.7 * F.one_hot(labels, 3) + 0.1 if probabilities else labels
    order = [torch.arange(start, min(start + 4, 19)) for start in range(0, 19, 4)]
    batches = [tuple(values.to(runtime.device) for values in (images[at], targets[at], at)) for at in order]
    metrics, scaled = EpochMetrics(), runtime.precision == "fp16" and optimizer == "rmsprop"
    gpu.waits.clear()
    for number, _ in enumerate(train_epoch(state, batches, metrics, 0, lambda step: 0.01)):
        # The only optimizer without a fused form asks the scaler whether to skip.
        allowed = ["_local_scalar_dense"] * (number + 1) if scaled and runtime.device.type == "cuda" else []
        assert gpu.waits == allowed
    assert gpu.waits == [*allowed, *(["tolist"] if runtime.device.type == "cuda" else [])]
    values = [*state.model.state_dict().values(), *state.evaluated.state_dict().values()]
    return [*(value.cpu() for value in values), torch.tensor([metrics.loss, metrics.correct, metrics.images])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_nothing_and_computes_the_same(kind: str, gpu: Any) -> None:
    compare("fp32", "adamw", gpu, **KINDS[kind])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_each_optimizer_in_each_precision(optimizer: str, precision: str, gpu: Any) -> None:
    compare(precision, optimizer, gpu, clip_grad=1.0)


def compare(precision: str, optimizer: str, gpu: Any, **kind: Any) -> None:
    there, here = (
        trained(Runtime(torch.device(device), precision, "for a test"), optimizer, gpu, **kind)
        for device in ("cuda", "cpu")
    )
    assert all(map(torch.equal, there, here))


def test_a_tensor_that_stayed_on_the_cpu_is_found(gpu: Any) -> None:
    state = train_state(Runtime(torch.device("cuda"), "fp32", "for a test"))
    state.class_weights = WEIGHTS
    images, labels = torch.zeros(4, 3, 8, 8, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        list(train_epoch(state, [(images, labels, labels)], EpochMetrics(), 0, lambda step: 0.01))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(7):
        Image.effect_noise((24 + 4 * i, 20), 80 + i).convert("RGB").save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(7)]


def batches_of(files: list[Path], augmentation: str, device: str) -> TrainingBatches:
    inputs = Preprocessing(size=SIZE)
    dataset = TransformedImages(files, [0, 1, 2, 0, 1, 2, 0], resize_transform(augmentation, inputs), 5, random=False)
    cache = ImageCache(len(files), 1 << 30, files[0].parent, shared=False)
    cached = cache.images(resized_side(augmentation, SIZE), augmentation in AS_PREDICTED)
    assert cached is not None
    dataset.cache = cached.subset(range(len(files)))
    loader, order = make_loader(dataset, 4, True, pin_memory=device == "cuda")
    augment = batch_augmentation(augmentation, SIZE)
    return TrainingBatches(loader, order, 5, 3, device, augment, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), mixup=0.4)


@pytest.mark.parametrize("augmentation", BATCH_AUGMENTATIONS)
def test_batches_are_copied_then_augmented_without_waiting(
    augmentation: str, files: list[Path], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first pass they come from the loader's pinned memory, in the second one from images on the GPU."""
    monkeypatch.setattr(batches_module, "CPU_IMAGES", 4)
    there, here = (batches_of(files, augmentation, device) for device in ("cuda", "cpu"))
    list(batches_of(files, augmentation, "cuda"))  # copies the constants of augmentations, once in a process
    for epoch in range(2):
        there.order.epoch = here.order.epoch = epoch
        gpu.waits.clear()
        batches = list(there)
        assert gpu.waits == (["copy_", "to the device", "to the device"] if epoch else [])  # the upload, once
        for ours, theirs in zip(batches, here, strict=True):
            assert all(values.is_cuda for values in ours)
            assert all(torch.equal(value.cpu(), other) for value, other in zip(ours, theirs, strict=True))
    assert there.on_gpu is not None and here.on_gpu is None


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_cached_features_are_indexed_without_waiting(room: int, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room, room))
    features, order = torch.randn(10, 4).bfloat16(), EpochBatchSampler(5, 2, 0, shuffle=True)
    there, here = (CachedFeatureBatches(features, range(5), order, [], device) for device in ("cuda", "cpu"))
    gpu.waits.clear()
    found = list(there)
    assert not gpu.waits and there.cached.is_cuda == bool(room)
    for batch, expected in zip(found, here, strict=True):
        assert batch[0].is_cuda and batch[1].is_cuda
        assert all(torch.equal(values.cpu(), other) for values, other in zip(batch, expected, strict=True))
