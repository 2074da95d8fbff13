"""Classifier heads: a linear layer, optionally with a hidden layer, batch norm or a sigmoid output.

A network may have several classifiers, such as the pair of a distilled network. It returns the mean of their logits.
"""

import contextlib
import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.models.network import MlpHead, Network


class TwoLogits(nn.Module):
    """The output z of a sigmoid head as the logits (-z/2, z/2) of two classes: (N, 1) -> (N, 2).

    Their softmax is (1 - sigmoid(z), sigmoid(z)) and their cross-entropy is the binary one of z, so the loss and
    the metrics treat both kinds of head alike.
    """

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([-z / 2, z / 2], dim=-1)


def set_head(
    model: nn.Module, num_classes: int, hidden: int = 0, dropout: float = 0.0, norm: bool = False, sigmoid: bool = False
) -> None:
    """Replaces the classifier of a network with timm's contract, in place.

    Args:
        hidden: Width of a hidden ReLU layer before the classifier; 0 for none. The original Keras tutorial
            has 1024 (global average pooling, Dense 1024 ReLU, Dense n).
        dropout: Probability before the classifier.
        norm: Batch norm of the pooled features, for backbones whose features are tiny or differ in scale.
        sigmoid: One output for two classes, as `Dense(1, activation="sigmoid")`, instead of one per class.

    Raises:
        UsageError: the network has no linear classifier, or a sigmoid head is for other than two classes.
    """
    # RepViT would drop its second classifier, and no file of its weights would fit.
    pair = {"distillation": True} if getattr(getattr(model, "head", None), "distillation", False) else {}
    model.reset_classifier(num_classes, **pair)  # type: ignore[operator]
    if hasattr(model, "aux_head"):
        model.register_module("aux_head", None)  # VOLO's classifier of tokens, for labels of tokens, which nobody has
    for name in classifier_names(model):
        last = model.get_submodule(name)
        if not isinstance(last, nn.Linear | nn.Conv2d):
            raise UsageError(f"the classifier of {type(model).__name__} is not linear", "choose another network")
        if sigmoid and num_classes != 2:
            raise UsageError(f"a sigmoid head tells two classes apart, not {num_classes}", 'use head = "softmax"')
        if not (hidden or dropout or norm or sigmoid):
            continue
        width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
        layers: list[tuple[str, nn.Module]] = [] if isinstance(last, nn.Linear) else [("flatten", nn.Flatten())]
        if norm:
            layers += [("norm", nn.BatchNorm1d(width))]
        if hidden:
            layers += [("hidden", nn.Linear(width, hidden)), ("relu", nn.ReLU())]
        if dropout:
            layers += [("drop", nn.Dropout(dropout))]
        layers += [("out", nn.Linear(hidden or width, 1 if sigmoid else num_classes))]
        if sigmoid:
            layers += [("two_logits", TwoLogits())]
        model.set_submodule(name, nn.Sequential(OrderedDict(layers)))


def reset_set_classifier(model: Any, name: str, width: int, num_classes: int, global_pool: str | None) -> None:
    """timm's `reset_classifier` of a network whose classifier, of a name, takes a feature set; what enters it stays."""
    if global_pool:
        raise ValueError(f"the classifier takes the feature set {model.feature_set}")
    reference = next(model.parameters())
    where: Any = {"device": reference.device, "dtype": reference.dtype}
    model.num_classes, model.head_hidden_size = num_classes, width
    setattr(model, name, nn.Linear(width, num_classes, **where) if num_classes else nn.Identity())


def remove_head(model: nn.Module, pooling: str = "") -> None:
    """Removes everything behind the last feature map, in place.

    With pooling "avg" or "max" over the map the network returns N x C, with "" the map itself, N x C x h x w.

    Raises:
        UsageError: the network (one of timm's) does not support that.
    """
    if isinstance(model, Network):
        model.head = MlpHead(model.num_features, 0, pooling).train(model.training)
        return
    try:
        model.reset_classifier(0, pooling)  # type: ignore[operator]
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        what = f"{type(model).__name__} has no pooling {pooling!r} of its features: {error}"
        raise UsageError(what, "use features() of flowers_torch.models.inspect.layer_features") from error


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that return the logits, such as `fc` or `head.fc`; two of a distilled network."""
    modules = dict(model.named_modules())
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()  # timm's own list
    if found := tuple(name for name in ([names] if isinstance(names, str) else names) if name in modules):
        return found
    if not hasattr(model, "get_classifier"):  # a plain module
        return ()
    given = model.get_classifier()  # type: ignore[operator]
    layers = list(given) if isinstance(given, tuple | list | nn.ModuleList) else [given]
    return tuple(name for name, module in modules.items() if any(module is layer for layer in layers))


def hash_backbone(model: nn.Module, classifiers: Sequence[str], digest: hashlib.blake2b) -> None:
    """Adds the names, shapes and bytes of all parameters and buffers but those of some classifiers to a digest."""
    heads = tuple(f"{name}." for name in classifiers)
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(heads):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def feature_width(classifier: nn.Module) -> int:
    """The number of features that a classifier takes, from its first layer with weights; 0 without one."""
    layers = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return int(layers[0].weight.shape[1]) if layers else 0


@contextlib.contextmanager
def classifier_inputs(model: nn.Module, names: Sequence[str] = ()) -> Iterator[list[Tensor]]:
    """A list that each forward pass inside appends its features (N, D) to: what enters the classifiers.

    Several classifiers have their inputs side by side. `names` are theirs, where the model does not know them.
    """
    layers = [model.get_submodule(name) for name in names or classifier_names(model)]
    found: list[Tensor] = []
    inputs_of: dict[int, Tensor] = {}

    def catch(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs_of[number] = inputs[0].flatten(1)  # not by module: torch.export calls copies
        if len(inputs_of) == len(layers):
            parts = [inputs_of[number] for number in range(len(layers))]
            found.append(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
            inputs_of.clear()

    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.enter_context(layer.register_forward_pre_hook(partial(catch, number)))
        yield found


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and the features (N, D) that enter the classifiers, in one pass in inference mode.

    Many threads may call it for one network: it registers no hook there. A network without timm's contract has no
    features, D = 0.
    """
    if not hasattr(model, "forward_head"):
        return model(images), images.new_empty(len(images), 0)
    width = sum(feature_width(model.get_submodule(name)) for name in classifier_names(model))
    maps = model.forward_features(images)  # type: ignore[operator]
    features = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    if isinstance(features, Tensor) and features.flatten(1).shape[1] == width:
        return model.forward_head(maps), features.flatten(1)  # type: ignore[operator]
    # Distilled networks mix the inputs of their two classifiers. Here they have them side by side.
    alone = shared_copy(model)
    with classifier_inputs(alone) as found:
        logits = alone.forward_head(maps)
    return logits, found[0]


def shared_copy(model: nn.Module) -> Any:
    """A copy of the modules that shares parameters and buffers, for hooks and modes that no other thread may see."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def main_and_auxiliary(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The logits in a network's output, and those of auxiliary classifiers, such as GoogLeNet's in training."""
    return (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
