"""Forward passes on PyTorch's own fake CUDA tensors, whose rules of devices are those of its kernels.

They have shapes and devices and no values: reading one raises. A backward pass of them needs a driver.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from flowers_torch.data.augment import per_batch
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, batch_augmentation
from flowers_torch.models.factory import create_model
from flowers_torch.models.inspect.layer_features import features
from flowers_torch.training.device import Runtime
from flowers_torch.training.step import predict_logits

RUNTIME = Runtime(torch.device("cuda"), "fp32", "for a test")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    per_batch._constant.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    per_batch._constant.cache_clear()


def network(arch: str = "test_resnet") -> nn.Module:
    with torch.device("cuda"):
        return create_model(arch, 3)


def images(size: int = 32, count: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, device="cuda")


@pytest.mark.parametrize("augmentation", BATCH_AUGMENTATIONS)
def test_augmentation(augmentation: str) -> None:
    positions = torch.arange(4, device="cuda")
    generator = SampleGenerator(1, torch.zeros(4, dtype=torch.long, device="cuda"), positions)
    made = batch_augmentation(augmentation, 32)(images(), generator, torch.ones(4, device="cuda"))
    made = per_batch.erase(per_batch.standardize(made, (0.5,) * 3, (0.2,) * 3), generator)
    mixed, targets = per_batch.mixup(made, F.one_hot(positions, 4).float(), 0.3)
    assert mixed.device.type == targets.device.type == "cuda" and mixed.shape == (4, 3, 32, 32)


@pytest.mark.parametrize(("arch", "size"), [("test_resnet", 32), ("inception_v3", 75)])
def test_prediction_and_embeddings(arch: str, size: int) -> None:
    model = network(arch)
    batch = images(size), torch.zeros(4, dtype=torch.long)
    logits, labels = predict_logits(model, [batch, batch], RUNTIME)
    assert logits.device.type == labels.device.type == "cpu" and logits.shape == (8, 3)
    assert features(model, images(size), "", "avg").device.type == "cuda"


def test_fake_tensors_refuse_what_a_gpu_refuses() -> None:
    with pytest.raises(RuntimeError, match="device"):
        images() + torch.rand(4, 3, 32, 32)
    with pytest.raises(DataDependentOutputException):
        images().sum().item()
