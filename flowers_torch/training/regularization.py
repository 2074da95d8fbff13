"""What holds the weights back: penalties on their size or on their way from the start, and their average."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A term added to the loss: `l1 * sum |w| + l2 * sum w^2 + l2_sp * sum (w - w_start)^2`.

    Over the kernels and matrices that train; biases and norms go free, as with weight decay. L2-SP (Li,
    Grandvalet and Davoine 2018) draws pretrained weights back to where they started, so it leaves out the
    fresh head, which has no start worth keeping.

    Attributes:
        l1: Factor of the absolute values.
        l2: Factor of the squares. Unlike AdamW's weight decay it passes through the optimiser's scaling.
        l2_sp: Factor of the squared distance from the start.
        names: Of the parameters under `l1` and `l2`.
        start: Values of the pretrained ones among them when the stage began.
    """

    l1: float
    l2: float
    l2_sp: float
    names: Sequence[str]
    start: Mapping[str, Tensor]

    def __call__(self, model: nn.Module) -> Tensor:
        """The term, a scalar with a gradient."""
        weights = {name: model.get_parameter(name) for name in self.names}
        terms = [self.l1 * weight.abs().sum() for weight in weights.values() if self.l1]
        terms += [self.l2 * weight.square().sum() for weight in weights.values() if self.l2]
        terms += [self.l2_sp * (weights[name] - start).square().sum() for name, start in self.start.items()]
        return torch.stack(terms).sum()


def make_penalty(
    model: nn.Module, head: str, l1: float = 0.0, l2: float = 0.0, l2_sp: float = 0.0
) -> Penalty | None:
    """A penalty over what trains now, or None where every factor is zero.

    Args:
        model: The network as the stage begins; its trained weights are copied where `l2_sp` needs them.
        head: Name of the classifier among its modules.
        l1: See `Penalty`.
        l2: See `Penalty`.
        l2_sp: See `Penalty`.
    """
    if not (l1 or l2 or l2_sp):
        return None
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    start = {
        name: weight.detach().clone()
        for name, weight in weights.items()
        if l2_sp and not name.startswith(f"{head}.")
    }
    return Penalty(l1, l2, l2_sp, tuple(weights), start)


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """A moving average of the weights (EMA), or None where the decay is zero.

    The decay of the n-th update is `min(decay, (1 + n) / (10 + n))`, TensorFlow's warm-up, so that a short
    run is not averaged with its start. Batch norm's statistics are averaged like the weights: those of the
    newest weights would not fit the average.
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
    """`average.update_parameters(model)`, which moves its count to the device and waits for that each time.

    Args:
        average: From `make_average`; its count stays on the CPU.
        model: The network that it follows.
    """
    both = [itertools.chain(network.parameters(), network.buffers()) for network in (average.module, model)]
    pairs = list(zip(*both, strict=True))
    count = int(average.n_averaged)
    for dtype in {mine.dtype for mine, _ in pairs}:
        mine, theirs = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
        if count == 0:
            torch._foreach_copy_(mine, theirs)
        else:
            average.multi_avg_fn(mine, theirs, count)  # type: ignore[misc]
    average.n_averaged += 1
