"""Optimisers over the groups that train, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from flowers_torch.models.freeze import Group


def make_optimizer(
    name: str,
    model: nn.Module,
    groups: Sequence[Group],
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """A fresh optimiser over the parameters that train.

    Args:
        name: adamw, adam, sgd or rmsprop.
        model: The network; on its device already.
        groups: From `apply_rules`; frozen ones are left out.
        weight_decay: Of matrices and kernels; biases and norms (one-dimensional) are never decayed.
        momentum: Of sgd and rmsprop.

    Returns:
        An optimiser whose groups carry `multiplier` (of the stage's learning rate) and `names`.
    """
    parameters = dict(model.named_parameters())
    merged: dict[tuple[float, float], list[str]] = {}
    for group in groups:
        for parameter in group.parameters if group.multiplier else ():
            decay = weight_decay if parameters[parameter].ndim > 1 else 0.0
            merged.setdefault((group.multiplier, decay), []).append(parameter)
    settings = [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "multiplier": multiplier,
            "weight_decay": decay,
        }
        for (multiplier, decay), names in merged.items()
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
    if name == "adamw":
        return torch.optim.AdamW(settings, lr=0.0, fused=fused)
    if name == "adam":
        return torch.optim.Adam(settings, lr=0.0, fused=fused)
    if name == "sgd":
        made = torch.optim.SGD(settings, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=fused)
        # Else the first step makes them without values, and leaves them so if it is skipped on the device.
        trained = [parameter for setting in made.param_groups for parameter in setting["params"]]
        for parameter in trained if momentum > 0 and fused else ():
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    if name == "rmsprop":
        # Keras's denominator sits outside the root too, with 1e-7; torch's default 1e-8 is kept.
        return torch.optim.RMSprop(settings, lr=0.0, alpha=0.9, momentum=momentum)
    raise ValueError(f"unknown optimizer {name!r}")


def learning_rate(step: int, steps: int, lr: float, schedule: str = "cosine", warmup: int = 0) -> float:
    """Learning rate of a step, a pure function of its number.

    Args:
        step: 0 .. steps - 1.
        steps: Of the whole stage.
        lr: Highest value, reached when the warm-up ends.
        schedule: "cosine" falls to zero at the end of the stage, "constant" and "plateau" stay.
        warmup: Steps of linear rise.
    """
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule in ("constant", "plateau"):  # drops on plateaus come from the history, see plateau.py
        return lr
    if schedule == "cosine":
        share = (step - warmup) / max(1, steps - warmup)
        return lr * 0.5 * (1 + math.cos(math.pi * share))
    raise ValueError(f"unknown schedule {schedule!r}")


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Writes a step's learning rate into the groups, times each group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]
