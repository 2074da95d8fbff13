"""A classifier in the form that timm and transformers load without this package: timm's names and config.json."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.models.heads import classifier_names
from flowers_torch.models.registry import REGISTRY, TIMM_PREFIX, build_network, find_entry
from flowers_torch.models.split_model import example_inputs

TOLERANCE = 1e-4  # of logits, whose sums are in another order


@dataclasses.dataclass(frozen=True)
class TimmForm:
    """A network of timm that computes what a classifier computes."""

    network: nn.Module
    info: ModelInfo  # of this network, whose tensors are those of `network`

    def config(self) -> dict[str, Any]:
        """What timm's `config.json` holds; transformers reads the same file."""
        inputs, network, info = self.info.preprocessing, self.network, self.info
        stated: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        pretrained = {
            "custom_load": False,
            "input_size": [3, inputs.size, inputs.size],
            "fixed_input_size": bool(stated.get("fixed_input_size", False)),
            "interpolation": inputs.interpolation,
            "crop_pct": 1.0 if inputs.stretch else inputs.crop,
            "crop_mode": "squash" if inputs.stretch else "center",
            "mean": list(inputs.mean),
            "std": list(inputs.std),
            "num_classes": len(info.classes),
            "pool_size": None,
            "first_conv": stated.get("first_conv"),
            "classifier": stated.get("classifier"),
        }
        return {
            "architecture": timm_name(info.arch).partition(".")[0],
            "num_classes": len(info.classes),
            "num_features": network.num_features,
            "label_names": list(info.classes),
            "model_args": info.model_options,
            "pretrained_cfg": pretrained | ({"license": info.license} if info.license else {}),
        }


def timm_name(arch: str) -> str:
    """The name in timm of a network whose weights timm's network takes; empty if there is none."""
    return find_entry(arch).timm_name


def to_timm(model: nn.Module, info: ModelInfo) -> TimmForm | None:
    """A network of timm with the weights of a classifier, or None where timm has none that computes the same.

    Handwritten networks that share timm's tensor names become timm's. Dropout, batch norm and a sigmoid in front of or
    behind a linear head are merged into it; a hidden layer cannot be. timm has no feature sets.

    Args:
        model: A classifier in inference mode.
    """
    name = timm_name(info.arch)
    if not name or info.head_hidden or info.features:
        return None
    handwritten = info.arch in REGISTRY
    own, options = (TIMM_PREFIX + name, {}) if handwritten else (info.arch, info.model_options)
    changed = dataclasses.replace(info, arch=own, model_options=options, head_norm=False, dropout=0.0, head="softmax")
    network = build_network(own, len(info.classes), size=info.preprocessing.size, options=options).eval()
    state = _with_linear_heads(model)
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if expected != {key: value.shape for key, value in state.items()}:
        return None
    network.load_state_dict(state)
    images = example_inputs(info.preprocessing.size)
    with torch.inference_mode():
        same = torch.allclose(network(images), model(images), rtol=TOLERANCE, atol=TOLERANCE)
    return TimmForm(network, changed) if same else None


def _with_linear_heads(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network, with one linear layer in place of each sequence that is a classifier."""
    state = model.state_dict()
    for name in classifier_names(model):
        classifier = model.get_submodule(name)
        if not isinstance(classifier, nn.Sequential):
            continue
        first = next(layer for layer in classifier if isinstance(layer, nn.Linear | nn.BatchNorm1d))
        width = first.in_features if isinstance(first, nn.Linear) else first.num_features
        as_map = isinstance(classifier[0], nn.Flatten)  # timm's layer is a 1x1 convolution there
        weight, bias = _affine(classifier, width)
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state |= {f"{name}.weight": weight[:, :, None, None] if as_map else weight, f"{name}.bias": bias}
    return state


@torch.no_grad()
def _affine(layers: nn.Sequential, width: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, width) and bias (classes,) of layers that compute a linear function, in double precision."""
    precise = copy.deepcopy(layers).double().eval()
    bias = precise(torch.zeros(1, width, dtype=torch.float64))
    weight = precise(torch.eye(width, dtype=torch.float64)) - bias
    return weight.T.float().contiguous(), bias[0].float()
