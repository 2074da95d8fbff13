"""The learning-rate range test (Smith 2015): a short run at growing rates shows which one to use."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from flowers_torch.errors import DivergedError
from flowers_torch.training.state import TrainState
from flowers_torch.training.step import train_step


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The outcome of a range test."""

    rates: tuple[float, ...]  # learning rate of each step, growing by a constant factor
    losses: tuple[float, ...]  # smoothed loss before each step
    suggestion: float  # learning rate to use
    reason: str  # one line


def lr_find(
    state: TrainState,
    batches: Iterable[Sequence[Tensor]],
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
) -> Sweep:
    """Trains a few steps at growing learning rates. This changes the network, so discard it afterwards.

    Args:
        state: Of the stage.
        batches: `(images, labels, ...)`; they start again when they run out.
        lowest: Rate of the first step.
        highest: Rate of the last step. The sweep ends earlier once the loss is four times its lowest.
        steps: At least 10.

    Raises:
        DivergedError: the loss rose from the first steps on, so no rate in the range can be recommended.
    """
    state = dataclasses.replace(state, read_interval=1)  # each loss decides whether to continue
    factor = (highest / lowest) ** (1 / (steps - 1))
    endless: Any = itertools.chain.from_iterable(itertools.repeat(batches))
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, (images, labels, *_) in enumerate(itertools.islice(endless, steps), start=1):
        rate = lowest * factor ** (step - 1)
        try:
            loss = train_step(state, images, labels, rate).loss
        except DivergedError:
            break
        average = 0.9 * average + 0.1 * loss
        rates.append(rate)
        losses.append(average / (1 - 0.9**step))  # corrects for the zero that the average starts with
        if losses[-1] > 4 * min(losses):
            break
    return Sweep(tuple(rates), tuple(losses), *_suggest(rates, losses))


def _suggest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    """The rate of the steepest descent, but at most a third of the rate of the lowest loss."""
    lowest = min(range(len(losses)), key=lambda i: losses[i], default=0)
    if lowest < 3:
        raise DivergedError("the loss rose at every rate tried", "try a lower --lowest")
    slopes = {i: (losses[i + 1] - losses[i - 1]) / math.log(rates[i + 1] / rates[i - 1]) for i in range(1, lowest)}
    steepest = min(slopes, key=lambda i: slopes[i])
    rate = min(rates[steepest], rates[lowest] / 3)
    fall = f"the loss falls fastest at {rates[steepest]:.2g} and is lowest at {rates[lowest]:.2g}"
    return float(f"{rate:.1g}"), fall
