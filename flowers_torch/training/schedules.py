"""Learning rates and the end of a stage as pure functions of the step and of the validation losses so far.

A resumed run therefore decides as the uninterrupted one would have, and saves no state for it.
"""

import math
from collections.abc import Sequence

PLATEAU_FACTOR = 0.1  # of each drop
PLATEAU_PATIENCE = 10  # epochs, as in Keras's `ReduceLROnPlateau`
PLATEAU_MIN_DELTA = 1e-4  # smallest improvement that counts


def learning_rate(step: int, steps: int, lr: float, schedule: str = "cosine", warmup: int = 0) -> float:
    """Learning rate of a step.

    Args:
        step: 0 .. steps - 1.
        lr: Highest value, reached when the warm-up ends.
        schedule: "cosine" falls to 0 at the end of the stage; "constant" and "plateau" stay. The drops of a
            plateau schedule come from `plateau_multiplier`.
        warmup: Steps of linear rise.
    """
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
