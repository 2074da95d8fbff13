"""How a stage moves its weights: optimizer, learning rate, penalties on the weights, and their moving average.

Learning rates and the end of a stage are pure functions of the step and of the validation losses so far. A
resumed run therefore decides as the uninterrupted one would have, and saves no state for it.
"""

import fnmatch
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowers_torch.models.freeze import Group

PLATEAU_FACTOR = 0.1  # of each drop
PLATEAU_PATIENCE = 10  # epochs, as in Keras's `ReduceLROnPlateau`
PLATEAU_MIN_DELTA = 1e-4  # smallest improvement that counts


def make_optimizer(
    name: str,
    model: nn.Module,
    groups: Sequence[Group],
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> torch.optim.Optimizer:
    """A fresh optimizer over the parameters that train.

    Args:
        name: adamw, adam, sgd or rmsprop.
        model: The network, on its device.
        groups: From `apply_rules`; frozen ones are left out.
        weight_decay: Of matrices and kernels; biases and norms (one-dimensional) are never decayed, nor what a
            timm network excludes, such as position embeddings.
        momentum: Of sgd and rmsprop.
        nesterov: Whether that of sgd is Nesterov's.

    Returns:
        An optimizer whose groups carry `multiplier` (of the stage's learning rate) and `names`.
    """
    parameters = dict(model.named_parameters())
    excluded: tuple[str, ...] = tuple(getattr(model, "no_weight_decay", tuple)())
    merged: dict[tuple[float, float], list[str]] = {}
    for group in groups:
        for parameter in group.parameters if group.multiplier else ():
            decay = weight_decay if _is_decayed(parameter, parameters[parameter], excluded) else 0.0
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
        made = torch.optim.SGD(settings, lr=0.0, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)
        # Otherwise the first step creates them without values, and leaves them so if the device skips it.
        trained = [parameter for setting in made.param_groups for parameter in setting["params"]]
        for parameter in trained if momentum > 0 and fused else ():
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    if name == "rmsprop":
        # Keras's denominator sits outside the root too, with 1e-7; torch's default of 1e-8 is kept.
        return torch.optim.RMSprop(settings, lr=0.0, alpha=0.9, momentum=momentum)
    raise ValueError(f"{name!r} is not a valid optimizer: expected adamw, adam, sgd or rmsprop")


def _is_decayed(name: str, parameter: Tensor, excluded: Sequence[str]) -> bool:
    """timm's rule; a pattern may leave out the modules around a parameter."""
    matches = (fnmatch.fnmatchcase(name, pattern) or name.endswith(f".{pattern}") for pattern in excluded)
    return parameter.ndim > 1 and not any(matches)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of a step, times the multiplier of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]


def learning_rate(
    step: int, steps: int, lr: float, schedule: str = "cosine", warmup: int = 0, decay: float = 0.0
) -> float:
    """Learning rate of a step.

    Args:
        step: 0 .. steps - 1.
        lr: Highest value, reached when the warm-up ends.
        schedule: "cosine" falls to 0 at the end of the stage; "constant" and "plateau" stay. The drops of a
            plateau schedule come from `plateau_multiplier`.
        warmup: Steps of linear rise.
        decay: Divides the learning rate of step t by 1 + decay t, as `decay` of Keras's optimizers.
    """
    lr /= 1 + decay * step
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule in ("constant", "plateau"):
        return lr
    if schedule == "cosine":
        fraction = (step - warmup) / max(1, steps - warmup)
        return lr * 0.5 * (1 + math.cos(math.pi * fraction))
    raise ValueError(f"{schedule!r} is not a valid schedule: expected cosine, constant or plateau")


def plateau_multiplier(losses: Sequence[float], patience: int = 0) -> float:
    """What drops on plateaus have made of the learning rate, by the rule of Keras's `ReduceLROnPlateau`.

    Args:
        losses: Validation loss of each finished epoch of the stage.
        patience: Epochs without an improvement that bring a drop; 0 for Keras's default.
    """
    multiplier, best, waited = 1.0, float("inf"), 0
    for loss in losses:
        if loss < best - PLATEAU_MIN_DELTA:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= (patience or PLATEAU_PATIENCE):
            multiplier, waited = multiplier * PLATEAU_FACTOR, 0
    return multiplier


def out_of_patience(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` epochs brought no lower loss; never if `patience` is 0.

    Args:
        losses: Calibrated validation loss of each finished epoch of the stage; NaN is never an improvement.
        patience: Epochs to wait.
    """
    best, waited = float("inf"), 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
    return patience > 0 and waited >= patience


def make_penalty(model: nn.Module, l1: float = 0.0, l2: float = 0.0) -> Callable[[nn.Module], Tensor] | None:
    """The term `l1 * sum |w| + l2 * sum w^2` of the loss, as Keras's regularizers add it, or None if both are 0.

    It covers the kernels and matrices that train now, and leaves out biases and norms. Unlike the decay of
    AdamW it passes through the optimizer's scaling.
    """
    if not (l1 or l2):
        return None
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1]

    def penalty(model: nn.Module) -> Tensor:
        weights = [model.get_parameter(name) for name in names]
        terms = [l1 * weight.abs().sum() for weight in weights if l1]
        terms += [l2 * weight.square().sum() for weight in weights if l2]
        return torch.stack(terms).sum()

    return penalty


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """A moving average of the weights (EMA), or None if the decay is 0.

    The decay of the n-th update is `min(decay, (1 + n) / (10 + n))`, TensorFlow's warm-up, so that a short
    run is not averaged with its start. The statistics of batch norm are averaged too: those of the newest
    weights would not fit the average.
    """
    if not decay:
        return None

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        if not averaged[0].is_floating_point():  # counters
            torch._foreach_copy_(list(averaged), list(current))
            return
        count = int(updates)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module) -> None:
    """`average.update_parameters(model)` whose count stays on the CPU, so that nothing waits for a GPU."""
    both = [itertools.chain(network.parameters(), network.buffers()) for network in (average.module, model)]
    pairs = list(zip(*both, strict=True))
    count = int(average.n_averaged)
    for dtype in {averaged.dtype for averaged, _ in pairs}:
        averaged, current = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
        if count == 0:
            torch._foreach_copy_(averaged, current)
        else:
            average.multi_avg_fn(averaged, current, count)  # type: ignore[misc]
    average.n_averaged += 1
