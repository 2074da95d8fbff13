"""Penalties on the weights in the loss, and the moving average of the weights."""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A term of the loss: `l1 * sum |w| + l2 * sum w^2`, as Keras's regularizers add it.

    It covers the kernels and matrices that train, and leaves out biases and norms. Unlike the decay of AdamW
    it passes through the optimizer's scaling.
    """

    l1: float
    l2: float
    names: Sequence[str]  # of the parameters

    def __call__(self, model: nn.Module) -> Tensor:
        """The term, a scalar with a gradient."""
        weights = [model.get_parameter(name) for name in self.names]
        terms = [self.l1 * weight.abs().sum() for weight in weights if self.l1]
        terms += [self.l2 * weight.square().sum() for weight in weights if self.l2]
        return torch.stack(terms).sum()


def make_penalty(model: nn.Module, l1: float = 0.0, l2: float = 0.0) -> Penalty | None:
    """A penalty on the weights that train now, or None if both factors are 0."""
    if not (l1 or l2):
        return None
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    return Penalty(l1, l2, tuple(names))


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
