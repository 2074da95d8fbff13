"""A network split in front of its head, so that a frozen backbone can be run once and the head many times."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.models.feature_sets import EVERY, Selection, offered_sets, selection, set_features
from flowers_torch.models.heads import classifier_inputs, classifier_names, feature_width, shared_copy


def example_inputs(size: int) -> Tensor:
    """Two random images (2, 3, size, size) to try networks on, the same ones each time."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """The classifiers of a network as a network of its own: features (N, D) to logits (N, classes).

    Features of several classifiers are side by side, and the logits are the mean of theirs.

    Args:
        classifiers: Each a linear layer, a 1x1 convolution, or a sequence that begins with one of `set_head`'s layers.
        widths: Number of features of each.
    """

    def __init__(self, classifiers: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.classifiers, self.widths = nn.ModuleList(classifiers), list(widths)

    def get_classifier(self) -> nn.ModuleList:
        """As in timm's contract."""
        return self.classifiers

    def forward_features(self, features: Tensor) -> Tensor:
        """The features as they are."""
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or the features."""
        return features if pre_logits else self(features)

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split(self.widths, 1)
        logits = [_logits(layer, part) for layer, part in zip(self.classifiers, parts, strict=True)]
        return torch.stack(logits).mean(0) if len(logits) > 1 else logits[0]

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Makes the head compute `features @ weight.T + bias`; its classifiers are linear layers."""
        parts = weight.split(self.widths, 1)
        layers: list[Any] = list(self.classifiers)
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.copy_((len(parts) * part).view_as(layer.weight))
            layer.bias.copy_(bias)


def _logits(classifier: nn.Module, features: Tensor) -> Tensor:
    maps = features[:, :, None, None] if isinstance(classifier, nn.Conv2d) else features
    logits: Tensor = classifier(maps)
    return logits.flatten(1)


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """Backbone and head of a network. They share its parameters and buffers.

    The backbone of a network that offers several feature sets returns what all of them consist of, in one pass.
    """

    model: nn.Module  # the backbone, with anything as its classifiers
    classifiers: tuple[str, ...]  # names of the classifiers among its modules
    head: Head
    width: int  # number of features that the backbone returns
    feature_set: str = ""  # that the head takes
    sets: Mapping[str, Selection] = dataclasses.field(default_factory=dict)  # empty: one set of all features

    def backbone(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """Features (N, width) of images (N, 3, H, W), no gradient; `network` may be a copy, such as a fused one."""
        model = network or self.model
        with torch.no_grad(), classifier_inputs(model, self.classifiers) as found:
            model(images)
        return found[0]

    def select(self, features: Tensor, feature_set: str | None = None) -> Tensor:
        """The features (N, D) of a set, that of the head by default, from what the backbone returns."""
        name = self.feature_set if feature_set is None else feature_set
        return self.sets[name].of(features) if self.sets else features

    def head_of(self, model: nn.Module, width: int = 0) -> Head:
        """The head of another network of the same kind, such as an average of the weights.

        `width` is the number of its features where it takes another feature set.
        """
        widths = [width] if width and len(self.classifiers) == 1 else self.head.widths
        return Head([model.get_submodule(name) for name in self.classifiers], widths)


def split_model(model: nn.Module, size: int) -> SplitModel | None:
    """Splits a network of timm's contract in front of its classifier; its modes stay as they are.

    Returns None where backbone and head one after the other do not compute what the network computes on example
    inputs of `size` pixels.
    """
    parameter = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    images = example_inputs(size).to(parameter.device).contiguous(memory_format=torch.channels_last)
    offered = offered_sets(model)
    try:
        whole = _split(model, images, offered) if len(offered) > 1 else None
        return whole or _split(model, images)
    finally:
        for module, training in modes.items():
            module.training = training


def _split(model: nn.Module, images: Tensor, offered: Sequence[str] = ()) -> SplitModel | None:
    """The network in two parts, whose backbone returns all of the feature sets if there are any."""
    names, backbone, own = classifier_names(model), model, getattr(model, "feature_set", "")
    try:
        if offered:
            backbone = shared_copy(model)
            set_features(backbone, EVERY)
            backbone.reset_classifier(0)
        with torch.no_grad(), without_tf32(), classifier_inputs(backbone, names) as found:
            logits = backbone(images)
            logits = model(images) if offered else logits
            features = found[0]
            classifiers = [model.get_submodule(name) for name in names]
            sets = {name: selection(model, name) for name in offered}
            split = SplitModel(backbone, names, Head([], []), features.shape[1], own, sets)
            features = split.select(features)
            widths = [feature_width(layer) or features.shape[1] for layer in classifiers]
            split = dataclasses.replace(split, head=Head(classifiers, widths))
            same = torch.allclose(logits, split.head(features), rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, IndexError, AttributeError, TypeError):  # the classifier takes more than features
        return None
    return split if same else None


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
