"""A network cut in two: a front that does not train and can be computed once, and a tail that does."""

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowers_torch.accelerate.conv_bn import fold, noise, without_tf32
from flowers_torch.models.freeze import blocks
from flowers_torch.models.heads import classifier_name


@dataclasses.dataclass
class SplitModel:
    """Both parts of a network; they share its parameters and buffers, nothing is copied."""

    model: nn.Module
    block: str  # the first one of the tail
    tail: nn.Module  # what the front answers -> logits
    width: int = 0  # channels of what the front answers
    folded: nn.Module | None = None  # a copy that answers as the frozen front does, sooner
    folded_from: str = ""  # which weights it was made of

    def speed_up(self, images: Tensor, dtype: torch.dtype, weights: str = "") -> None:
        """Folds batch norm into the front, once for the same weights; see `fold.py`.

        Args:
            images: A few of any content, N x 3 x H x W.
            dtype: That it shall compute in.
            weights: A name of the front's weights as they are.
        """
        if self.folded is None or self.folded_from != weights:
            self.folded = fold(self.model, lambda model: self.front(images, model), dtype)
            self.folded_from = weights

    def front(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """What the tail takes: the input of its first block, (N, ...), without a gradient.

        Args:
            images: N x 3 x H x W.
            model: The network or a copy of it.
        """
        model = model or self.folded or self.model
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught.append(inputs[0])
            raise _Caught  # what comes behind is not needed

        handle = model.get_submodule(self.block).register_forward_pre_hook(catch)
        try:
            with torch.no_grad():
                model(images)
        except _Caught:
            pass
        finally:
            handle.remove()
        return caught[0]


class _Caught(Exception):
    """The front has computed its answer."""


def cut(model: nn.Module, size: int, channels_last: bool = True) -> SplitModel | None:
    """Cuts a network in front of the first block that trains.

    Args:
        model: A network to which `apply_rules` was applied.
        size: Side of its input in pixels, for the proof.
        channels_last: Memory layout of its convolutions.

    Returns:
        None where nothing is frozen in front, or where front and tail in a row do not compute what the
        network computes, because its forward pass is more than its blocks in a row. This is tried, not
        believed.
    """
    parameters = dict(model.named_parameters())
    trains = {
        block: any(parameters[name].requires_grad for name in names) for block, names in blocks(model).items()
    }
    first = next(block for block in trains if trains[block])
    if first == next(iter(trains)) or first in parameters:
        return None
    head = classifier_name(model)
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    # The classifier may be a part of a child that pools first, as in timm's `head.fc`.
    made = split_at(model, head if all(name.startswith(f"{head}.") for name in trained) else first)
    return made if _computes_the_same(made, size, channels_last) else None


def split_at(model: nn.Module, block: str) -> SplitModel:
    """Cuts a network in front of a block, without looking whether it stays the same network."""
    if block == classifier_name(model):
        return SplitModel(model, block, HeadModule(model.get_submodule(block)))
    return SplitModel(model, block, _without(model, block.split(".")))


class HeadModule(nn.Module):
    """A network that is its classifier: pooled features (N, features) -> logits (N, classes)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def get_classifier(self) -> nn.Module:
        """The classifier, as timm's networks have it."""
        return self.classifier

    def forward(self, features: Tensor) -> Tensor:
        """Logits of pooled features."""
        logits: Tensor = self.classifier(features)
        return logits


def _without(module: nn.Module, path: Sequence[str]) -> nn.Module:
    """A view of a network in which all children in front of the one at `path` pass their input on."""
    tail = copy.copy(module)
    tail._modules = dict(module._modules)
    for name in list(tail._modules):
        if name == path[0]:
            break
        tail._modules[name] = nn.Identity()
    if len(path) > 1:
        tail._modules[path[0]] = _without(module.get_submodule(path[0]), path[1:])
    return tail


def _computes_the_same(made: SplitModel, size: int, channels_last: bool) -> bool:
    modes = {module: module.training for module in (*made.model.modules(), made.tail)}
    made.model.eval()
    made.tail.eval()
    parameter = next(made.model.parameters())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.no_grad(), without_tf32():
        images = noise(size).to(parameter.device).contiguous(memory_format=layout)
        try:
            answer = made.front(images)
            made.width = answer.shape[1]
            whole, parts = made.model(images), made.tail(answer)
            same = whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-4, atol=1e-5)
        except (RuntimeError, IndexError, AttributeError, TypeError):  # the tail cannot do with Identity
            same = False
    for module, training in modes.items():
        module.training = training
    return same
