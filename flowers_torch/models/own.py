"""Networks of the user's own, from any other program: a module becomes a network with timm's contract."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import UsageError, one_line, printable
from flowers_torch.models.registry import OWN_PREFIX, NetworkEntry, register
from flowers_torch.models.split_model import example_inputs

CONTRACT = ("forward_features", "forward_head", "get_classifier", "reset_classifier")


class OwnNetwork(nn.Module):
    """A module whose last layer is linear, with timm's contract: N x 3 x H x W -> N x classes.

    Args:
        module: Any module from images to logits; it is changed.
        classifier: The name of its linear layer that returns the logits.
    """

    wrapped = "body"  # the child whose children are the blocks of the network

    def __init__(self, module: nn.Module, classifier: str) -> None:
        super().__init__()
        linear: Any = module.get_submodule(classifier)
        module.set_submodule(classifier, nn.Identity())
        self.body = module
        self.fc: Any = linear
        self.num_features: int = linear.in_features
        self.classifier = classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (N, num_features) of images (N, 3, H, W): all of the module but its last layer."""
        features: Tensor = self.body(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of features, or the features."""
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that returns the logits."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier."""
        reference = next(self.parameters())
        where: Any = {"device": reference.device, "dtype": reference.dtype}
        self.fc = nn.Linear(self.num_features, num_classes, **where) if num_classes else nn.Identity()

    def module(self) -> nn.Module:
        """A copy of the user's module with the trained weights and the new classifier in its place."""
        found = copy.deepcopy(self.body)
        found.set_submodule(self.classifier, copy.deepcopy(self.fc))
        return found


def register_module(module: nn.Module, size: int = 0) -> str:
    """Registers a copy of a module as the network `own:<class>` of this process, and returns this name.

    A module of the same class that was registered before is replaced. Its weights are those that training starts from.

    Args:
        module: With timm's contract, or with a linear last layer.
        size: Side of its images in pixels; 0 for that of its `pretrained_cfg`, or 224. `pretrained_cfg` also gives
            mean and std; ImageNet's if there is none.

    Raises:
        UsageError: the module does not compute such images, or its last layer is not linear.
    """
    name = f"{OWN_PREFIX}{type(module).__name__}"
    preprocessing = _preprocessing(module, size)
    network = copy.deepcopy(module).cpu()
    if not all(hasattr(network, method) for method in CONTRACT):
        network = OwnNetwork(network, _last_linear(network, preprocessing.size))
    register(name, NetworkEntry(_builder(network), preprocessing, min_size=1, is_own=True), replace=True)
    return name


def _builder(network: nn.Module) -> Callable[..., nn.Module]:
    def build(num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
        built: Any = copy.deepcopy(network)
        built.reset_classifier(num_classes)
        return built

    return build


def _preprocessing(module: nn.Module, size: int) -> Preprocessing:
    config: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    preprocessing = Preprocessing(size or (config.get("input_size") or (3, 224, 224))[1])
    if "mean" in config and "std" in config:
        preprocessing = dataclasses.replace(preprocessing, mean=tuple(config["mean"]), std=tuple(config["std"]))
    return preprocessing


def _last_linear(module: nn.Module, size: int) -> str:
    """The name of the linear layer whose output the module returns."""
    outputs: dict[str, Any] = {}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output}))
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear
    ]
    modes = {layer: layer.training for layer in module.modules()}
    kind = printable(type(module).__name__)
    try:
        with torch.no_grad():
            logits = module.eval()(example_inputs(size))
    except Exception as error:  # the user's own code
        fix = "give the side of its images as size"
        raise UsageError(f"{kind} does not compute images of {size} pixels: {one_line(error)}", fix) from error
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
    for name, output in outputs.items():
        if name and isinstance(logits, Tensor) and (output is logits or torch.equal(output, logits)):
            return name
    fix = f"end it with nn.Linear, or give it timm's contract: {', '.join(CONTRACT)}"
    raise UsageError(f"the last layer of {kind} is not linear", fix)
