"""What the validation losses so far ask for: a lower learning rate, or an end.

Pure functions of the history, so a resumed run decides as the uninterrupted one did and saves no state.
"""

from collections.abc import Sequence


def plateau_multiplier(
    losses: Sequence[float], factor: float = 0.1, patience: int = 10, min_delta: float = 1e-4
) -> float:
    """What drops on plateaus have made of the learning rate, with the rule of Keras's `ReduceLROnPlateau`.

    Args:
        losses: Validation loss of each finished epoch of the stage.
        factor: Of each drop.
        patience: Epochs without a loss lower than the best by more than `min_delta` that bring a drop.
        min_delta: Smallest improvement that counts.
    """
    multiplier, best, waited = 1.0, float("inf"), 0
    for loss in losses:
        if loss < best - min_delta:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= patience:
            multiplier, waited = multiplier * factor, 0
    return multiplier


def out_of_patience(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` epochs brought no lower loss; never where `patience` is 0.

    Args:
        losses: Calibrated validation loss of each finished epoch of the stage; NaN is never an improvement.
        patience: Epochs to wait.
    """
    best, waited = float("inf"), 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
    return patience > 0 and waited >= patience
