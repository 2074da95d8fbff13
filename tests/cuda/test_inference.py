"""Validation, prediction, embeddings, Grad-CAM and linear heads on the simulated GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.features import image_features
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.evaluation.gradcam import grad_cam
from flowers_torch.evaluation.mirroring import gradient_features
from flowers_torch.evaluation.predictions import collect
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.factory import create_model
from flowers_torch.models.inspect.layer_features import features
from flowers_torch.models.split_model import split_model
from flowers_torch.training.device import Runtime
from flowers_torch.training.estimate import estimate

HALF = ("cuda", "fp16"), ("cuda", "bf16"), ("cuda", "fp32")
ARCHS = ("test_resnet", "test_vit")


def runtime(device: str, precision: str = "fp32") -> Runtime:
    return Runtime(torch.device(device), precision, "for a test")


def network(arch: str, where: Runtime) -> nn.Module:
    torch.manual_seed(0)
    return where.place(create_model(arch, 3)).eval()


def images(arch: str, count: int = 6) -> Tensor:
    side = 160 if arch == "test_vit" else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ARCHS)
def test_validation_waits_once_and_keeps_nothing_on_the_gpu(arch: str, gpu: Any) -> None:
    found = {}
    for device in ("cuda", "cpu"):
        where = runtime(device)
        data, labels = images(arch), torch.arange(6) % 3
        batches = [(data[at].pin_memory(), labels[at].to(where.device)) for at in (slice(4), slice(4, 6))]
        model = network(arch, where)
        gpu.waits.clear()
        found[device] = collect(model, batches, where)
        assert gpu.waits == (["synchronize"] if device == "cuda" else [])
    for name in ("logits", "labels", "features"):
        there, here = (getattr(found[device], name) for device in ("cuda", "cpu"))
        assert not there.is_cuda and torch.equal(there, here) and len(there) == 6


@pytest.mark.parametrize("arch", ARCHS)
def test_grad_cam(arch: str, gpu: Any) -> None:
    heat = {}
    for device in ("cuda", "cpu"):
        where = runtime(device)
        heat[device] = grad_cam(network(arch, where), where.images(images(arch, 2)), torch.tensor([0, 2]))
    assert not heat["cuda"].is_cuda and torch.equal(heat["cuda"], heat["cpu"])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("pooling", ["avg", "max", "flatten", ""])
def test_embeddings(arch: str, pooling: str, gpu: Any) -> None:
    there, here = (
        features(network(arch, where), where.images(images(arch, 2)), "", pooling)
        for where in (runtime("cuda"), runtime("cpu"))
    )
    assert there.is_cuda and torch.equal(there.cpu(), here)


def test_embeddings_of_files_wait_once(photo_folder: Path, gpu: Any) -> None:
    paths, found = sorted(photo_folder.rglob("*.png"))[:5], {}
    info = ModelInfo("test_resnet", ("a", "b"), Preprocessing(size=32))
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        model = build(info)
        gpu.waits.clear()
        found[device] = image_features(model, info.preprocessing, paths, runtime(device), batch_size=2)
        assert gpu.waits.count("synchronize") == (device == "cuda") and "to the host" not in gpu.waits
    assert torch.equal(found["cuda"], found["cpu"])


@pytest.mark.parametrize(("device", "precision"), HALF)
def test_prediction_and_explanation(device: str, precision: str, photo_folder: Path, gpu: Any) -> None:
    torch.manual_seed(0)
    info = ModelInfo("test_resnet", ("a", "b", "c"), Preprocessing(size=32))
    model, where = build(info), runtime(device, precision)
    classifier = Predictor(where.place(model), info, where)
    paths = sorted(photo_folder.rglob("*.png"))[:3]
    predictions = list(classifier.predict(paths))
    assert all(abs(sum(each.probabilities) - 1) < 1e-3 for each in predictions) and len(predictions) == 3
    assert classifier.explain(paths[0]).size == (32, 32)


def test_a_network_is_split_and_its_step_is_timed(gpu: Any) -> None:
    where = runtime("cuda")
    model = network("test_resnet", where)
    split = split_model(model, 32)
    assert split is not None
    split.head.set_linear(torch.ones(3, split.width), torch.ones(3))
    assert split.head(split.backbone(where.images(images("test_resnet")))).is_cuda
    assert estimate(model, 32, 4, where, "adamw").memory_bytes > 0
    maps = images("test_resnet").cuda()
    assert torch.equal(gradient_features(maps).cpu(), gradient_features(maps.cpu()))


class Cramped(nn.Module):
    """Has memory for two images at a time, and says otherwise in the words of `error`, after the hooks have run."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.fc, self.error, self.sizes = nn.Linear(12, 3), error, []

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.fc(x.flatten(1))
        if len(x) > 2:
            raise self.error()
        return logits


def test_a_batch_that_does_not_fit_is_halved_in_prediction() -> None:
    torch.manual_seed(0)
    model = Cramped(lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    data, labels = torch.randn(7, 3, 2, 2), torch.arange(7)
    found = collect(model, [(data, labels)], runtime("cpu"))
    torch.testing.assert_close(found.logits, model.fc(data.flatten(1)).detach())
    assert found.features.shape == (7, 0) and found.labels.tolist() == list(range(7))
    assert model.sizes == [7, 4, 2, 2, 3, 2, 1]


def test_other_errors_of_prediction_are_not_hidden() -> None:
    model = Cramped(lambda: RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="assert"):
        collect(model, [(torch.randn(7, 3, 2, 2), torch.arange(7))], runtime("cpu"))
