"""A network split in front of its head, so that a frozen backbone can be run once and the head many times."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.models.heads import classifier_name


def example_inputs(size: int) -> Tensor:
    """Two random images (2, 3, size, size) to try networks on, the same ones each time."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """The classifier of a network as a network of its own: pooled features (N, D) to logits (N, classes)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def get_classifier(self) -> nn.Module:
        """As in timm's contract."""
        return self.classifier

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features)
        return logits


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """Backbone and head of a network. They share its parameters and buffers."""

    model: nn.Module
    classifier: str  # name of the classifier among its modules
    head: Head
    width: int  # number of features D

    def backbone(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """Features (N, D) of images (N, 3, H, W), without a gradient; `network` may be a copy, such as a fused one."""
        return _classifier_input(network or self.model, self.classifier, images)


def split_model(model: nn.Module, size: int) -> SplitModel | None:
    """Splits a network of timm's contract in front of its classifier; its modes stay as they are.

    Returns None where backbone and head one after the other do not compute what the network computes on example
    inputs of `size` pixels.
    """
    name, parameter = classifier_name(model), next(model.parameters())
    head = Head(model.get_submodule(name))
    modes = {module: module.training for module in (*model.modules(), head)}
    model.eval()
    head.eval()
    images = example_inputs(size).to(parameter.device).contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad(), without_tf32():
            features, logits = _classifier_input(model, name, images), model(images)
            split = head(features)
        same = logits.shape == split.shape and torch.allclose(logits, split, rtol=1e-4, atol=1e-5)
    except (RuntimeError, IndexError, AttributeError, TypeError):  # the classifier takes more than features
        return None
    finally:
        for module, training in modes.items():
            module.training = training
    return SplitModel(model, name, head, features.shape[1]) if same and features.ndim == 2 else None


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Full float32 on a GPU inside: with the ten bits of TF32 no two forms of a network would agree."""
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


class _Reached(Exception):
    """The classifier was reached; what follows is not needed."""


def _classifier_input(model: nn.Module, classifier: str, images: Tensor) -> Tensor:
    found: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    handle = model.get_submodule(classifier).register_forward_pre_hook(catch)
    try:
        with torch.no_grad(), contextlib.suppress(_Reached):
            model(images)
    finally:
        handle.remove()
    return found[0]
