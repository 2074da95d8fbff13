"""Optimizers over the parameters that train."""

from collections.abc import Sequence

import torch
from torch import nn

from flowers_torch.models.freeze import Group


def make_optimizer(
    name: str, model: nn.Module, groups: Sequence[Group], weight_decay: float = 0.0, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """A fresh optimizer over the parameters that train.

    Args:
        name: adamw, adam, sgd or rmsprop.
        model: The network, on its device.
        groups: From `apply_rules`; frozen ones are left out.
        weight_decay: Of matrices and kernels; biases and norms (one-dimensional) are never decayed.
        momentum: Of sgd and rmsprop.

    Returns:
        An optimizer whose groups carry `multiplier` (of the stage's learning rate) and `names`.
    """
    parameters = dict(model.named_parameters())
    merged: dict[tuple[float, float], list[str]] = {}
    for group in groups:
        for parameter in group.parameters if group.multiplier else ():
            decay = weight_decay if parameters[parameter].ndim > 1 else 0.0
            merged.setdefault((group.multiplier, decay), []).append(parameter)
    settings = [
        {"params": [parameters[n] for n in names], "names": names} | {"multiplier": factor, "weight_decay": decay}
        for (factor, decay), names in merged.items()
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
    if name == "adamw":
        return torch.optim.AdamW(settings, lr=0.0, fused=fused)
    if name == "adam":
        return torch.optim.Adam(settings, lr=0.0, fused=fused)
    if name == "sgd":
        made = torch.optim.SGD(settings, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=fused)
        # Otherwise the first step creates them without values, and leaves them so if the device skips it.
        trained = [parameter for setting in made.param_groups for parameter in setting["params"]]
        for parameter in trained if momentum > 0 and fused else ():
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    if name == "rmsprop":
        # Keras's denominator sits outside the root too, with 1e-7; torch's default of 1e-8 is kept.
        return torch.optim.RMSprop(settings, lr=0.0, alpha=0.9, momentum=momentum)
    raise ValueError(f"{name!r} is not a valid optimizer: expected adamw, adam, sgd or rmsprop")


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of a step, times the multiplier of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]
