"""Advice on training: rules over a run's history that say what went wrong and which options to try next."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flowers_torch.evaluation.metrics import wilson
from flowers_torch.training.checkpoint import CRITERION

OVERFIT_GAP = 0.1  # accuracy on training images minus accuracy on validation images
STILL_FALLING = 0.03  # relative drop of the validation loss in the last epoch


@dataclasses.dataclass(frozen=True)
class Advice:
    """An observation about the history and the flags that may help; no flags where none would."""

    what: str
    flags: str


def advise_on_training(
    history: Sequence[dict[str, Any]],
    stages: Sequence[dict[str, Any]],
    classes: int,
    val_images: int,
    pretrained: bool,
) -> list[Advice]:
    """Applies the rules to the history of a run.

    Args:
        history: One row per epoch, as in history.csv.
        stages: Settings of each stage: name, epochs, augment, and lr unless L-BFGS fits the stage.
        classes: Number of classes.
        val_images: Number of validation images.
        pretrained: Whether training started from pretrained weights.

    Returns:
        Advice in order of importance; empty if nothing stands out.
    """
    finite = [row for row in history if math.isfinite(row[CRITERION])]
    if not finite:
        return []
    best = min(finite, key=lambda row: row[CRITERION])
    correct = round(best["val_accuracy"] * val_images)
    if wilson(correct, val_images)[0] <= 1 / classes:  # chance lies within the interval
        return [_no_learning(history, stages, classes, pretrained)]
    found = [
        _number_of_epochs(history, best, stages),
        _overfitting(history[-1], best, stages),
        _too_much_augmentation(history[-1], stages),
    ]
    return [advice for advice in found if advice is not None]


def _stage_index(row: dict[str, Any], stages: Sequence[dict[str, Any]]) -> int:
    names = [stage["name"] for stage in stages]
    return names.index(row["stage"]) if row["stage"] in names else len(stages) - 1


def _number_of_epochs(
    history: Sequence[dict[str, Any]], best: dict[str, Any], stages: Sequence[dict[str, Any]]
) -> Advice | None:
    last, final = history[-1], _stage_index(history[-1], stages)
    if _stage_index(best, stages) < final and "lr" in stages[final]:
        return Advice(
            f"stage {last['stage']} is worse than stage {best['stage']}: its learning rate is too high for "
            "these weights",
            _rate_flag(stages[final], 1 / 3),
        )
    earlier = [row[CRITERION] for row in history[:-1] if row["stage"] == last["stage"]]
    earlier = [loss for loss in earlier if math.isfinite(loss)]
    if best is last and earlier and last[CRITERION] < min(earlier) * (1 - STILL_FALLING):
        epochs = [str(stage["epochs"] * (2 if i == final else 1)) for i, stage in enumerate(stages)]
        return Advice(
            "the calibrated validation loss was still falling in the last epoch "
            f"(by {1 - last[CRITERION] / min(earlier):.0%})",
            f"--epochs {','.join(epochs)}",
        )
    return None


def _overfitting(last: dict[str, Any], best: dict[str, Any], stages: Sequence[dict[str, Any]]) -> Advice | None:
    gap = last["train_accuracy"] - last["val_accuracy"]
    stage = stages[_stage_index(last, stages)]
    if gap > OVERFIT_GAP and last[CRITERION] > best[CRITERION] * 1.1:
        stronger = "rand" if stage.get("augment") in ("crop", "trivial") else "crop"
        epochs = ",".join(str(each["epochs"]) for each in stages)
        return Advice(
            f"the network memorized the training photos (accuracy {last['train_accuracy']:.2f} on them, "
            f"{last['val_accuracy']:.2f} in validation, with a rising validation loss): use more photos or "
            "stronger augmentation",
            f"--set stages.{last['stage']}.augment={stronger} --epochs {epochs}",
        )
    if gap > 2 * OVERFIT_GAP:
        return Advice(
            f"validation accuracy ({last['val_accuracy']:.2f}) stays far behind training accuracy "
            f"({last['train_accuracy']:.2f}): more photos would help most, dropout may help",
            "--set dropout=0.3" if all("lr" in each for each in stages) else "",  # L-BFGS has no dropout
        )
    return None


def _too_much_augmentation(last: dict[str, Any], stages: Sequence[dict[str, Any]]) -> Advice | None:
    gap = last["val_accuracy"] - last["train_accuracy"]
    augment = stages[_stage_index(last, stages)].get("augment")
    if gap <= 2 * OVERFIT_GAP or last["train_accuracy"] >= 0.8 or augment in ("none", "light"):
        return None
    return Advice(
        f"training accuracy ({last['train_accuracy']:.2f}) is far below validation accuracy "
        f"({last['val_accuracy']:.2f}): the augmentation may be too strong",
        f"--set stages.{last['stage']}.augment=light",
    )


def _no_learning(
    history: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]], classes: int, pretrained: bool
) -> Advice:
    """The most likely reason why validation stayed at chance."""
    what = f"the network did not learn: validation is no better than guessing among {classes} classes"
    last, stage = history[-1], stages[-1]
    if last["train_accuracy"] > max(2 / classes, 0.7) and "lr" in stage:
        return Advice(
            f"{what}, while training reached {last['train_accuracy']:.2f}: the batch-norm statistics do not "
            "fit the photos, or the labels differ between the splits",
            f"--set stages.{stage['name']}.batch_norm=all",
        )
    losses = [row["train_loss"] for row in history]
    change = f"from {losses[0]:.2f} to {losses[-1]:.2f}"
    if losses[-1] > losses[0] * 1.05 and "lr" in stage:
        return Advice(
            f"{what}, and the training loss rose {change}: the learning rate is too high",
            _rate_flag(stage, 1 / 10),
        )
    if not pretrained:
        return Advice(f"{what}: random weights need thousands of photos or many epochs", "--weights imagenet")
    labels = "the labels are unrelated to the photos (see flowers-torch check)"
    with_rate = [stage for stage in stages if "lr" in stage]
    if not with_rate:
        return Advice(f"{what}: the frozen network does not tell them apart, or {labels}", "")
    return Advice(
        f"{what}, and the training loss hardly moved ({change}): the learning rate is too low, or {labels}",
        _rate_flag(with_rate[0], 10),
    )


def _rate_flag(stage: dict[str, Any], factor: float) -> str:
    return f"--set stages.{stage['name']}.lr={stage['lr'] * factor:.2g}"
