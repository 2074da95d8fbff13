"""Why a run did not learn as it could have, and what to type next: rules over its history."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flowers_torch.evaluation.metrics import wilson
from flowers_torch.training.checkpoint import CRITERION

OVERFIT_GAP = 0.1  # of accuracy between training and validation
STILL_FALLING = 0.03  # share by which the last epoch lowered the validation loss


@dataclasses.dataclass(frozen=True)
class Advice:
    """Something that the history shows, and the flags that would try to mend it (empty: nothing to do)."""

    what: str
    flags: str


def advise_on_training(
    history: Sequence[dict[str, Any]],
    stages: Sequence[dict[str, Any]],
    classes: int,
    val_photos: int,
    pretrained: bool,
) -> list[Advice]:
    """Reads the history of a run.

    Args:
        history: A row for each epoch, as in history.csv.
        stages: Settings of each stage: name, epochs, train, augment, and lr unless L-BFGS fits it.
        classes: How many.
        val_photos: Photos that validation counts on.
        pretrained: Whether it started from trained weights.

    Returns:
        What is worth doing, most important first; empty where all went well.
    """
    if not any(math.isfinite(row[CRITERION]) for row in history):
        return []
    best = min((row for row in history if math.isfinite(row[CRITERION])), key=lambda row: row[CRITERION])
    last = history[-1]
    advice: list[Advice] = []
    chance = 1 / classes
    # At chance: the interval of the best accuracy still holds what guessing would give.
    if wilson(round(best["val_accuracy"] * val_photos), val_photos)[0] <= chance:
        advice.append(_did_not_learn(history, stages, classes, pretrained))
        return advice
    names = [stage["name"] for stage in stages]
    number = names.index(best["stage"]) if best["stage"] in names else len(stages) - 1
    final = names.index(last["stage"]) if last["stage"] in names else len(stages) - 1
    epochs = ",".join(str(stage["epochs"]) for stage in stages)
    rows = [row for row in history if row["stage"] == last["stage"]]
    if number < final and "lr" in stages[final]:
        advice.append(
            Advice(
                f"stage {last['stage']} made it worse than stage {best['stage']} had left it: its learning "
                "rate is too high for these weights",
                _rate_flag(stages[final], 1 / 3),
            )
        )
    elif best is last and any(math.isfinite(row[CRITERION]) for row in rows[:-1]):
        before = min(row[CRITERION] for row in rows[:-1] if math.isfinite(row[CRITERION]))
        if last[CRITERION] < before * (1 - STILL_FALLING):
            longer = [str(stage["epochs"]) for stage in stages]
            longer[final] = str(2 * stages[final]["epochs"])
            advice.append(
                Advice(
                    "the calibrated validation loss was still falling in the last epoch "
                    f"(by {1 - last[CRITERION] / before:.0%})",
                    f"--epochs {','.join(longer)}",
                )
            )
    gap = last["train_accuracy"] - last["val_accuracy"]
    rising = last[CRITERION] > best[CRITERION] * 1.1
    if gap > OVERFIT_GAP and rising:
        stronger = "rand" if stages[final].get("augment") in ("crop", "trivial") else "crop"
        advice.append(
            Advice(
                f"it learned the training photos by heart (accuracy {last['train_accuracy']:.2f} there, "
                f"{last['val_accuracy']:.2f} in validation, whose loss rose again): more photos, or stronger "
                "augmentation",
                f"--set stages.{last['stage']}.augment={stronger} --epochs {epochs}",
            )
        )
    elif gap > 2 * OVERFIT_GAP:
        advice.append(
            Advice(
                f"validation ({last['val_accuracy']:.2f}) stays far behind training "
                f"({last['train_accuracy']:.2f}): more photos would help most; dropout may",
                "--set dropout=0.3" if all("lr" in stage for stage in stages) else "",  # L-BFGS knows none
            )
        )
    if (
        gap < -2 * OVERFIT_GAP
        and last["train_accuracy"] < 0.8
        and stages[final].get("augment")
        not in (
            "none",
            "light",
        )
    ):
        advice.append(
            Advice(
                f"training accuracy ({last['train_accuracy']:.2f}) is far below validation's "
                f"({last['val_accuracy']:.2f}): the augmentation may be too strong",
                f"--set stages.{last['stage']}.augment=light",
            )
        )
    return advice


def _did_not_learn(
    history: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]], classes: int, pretrained: bool
) -> Advice:
    """Why validation stayed at chance."""
    what = f"it did not learn: validation is no better than guessing among {classes} classes"
    last, stage = history[-1], stages[-1]
    if last["train_accuracy"] > max(2 / classes, 0.7) and "lr" in stage:
        return Advice(
            f"{what}, while training reached {last['train_accuracy']:.2f}: batch-norm statistics that do not "
            "fit the photos, or labels that differ between the parts",
            f"--set stages.{stage['name']}.batch_norm=all",
        )
    losses = [row["train_loss"] for row in history]
    if losses[-1] > losses[0] * 1.05 and "lr" in stage:
        return Advice(
            f"{what}, and the training loss rose from {losses[0]:.2f} to {losses[-1]:.2f}: the learning rate "
            "is too high",
            _rate_flag(stage, 1 / 10),
        )
    if not pretrained:
        return Advice(
            f"{what}: it started from random weights, which takes thousands of photos or many epochs",
            "--weights imagenet",
        )
    labels = "the labels have nothing to do with the photos (see flowers-torch check)"
    by_steps = [stage for stage in stages if "lr" in stage]
    if not by_steps:
        return Advice(f"{what}: the frozen network does not tell them apart, or {labels}", "")
    return Advice(
        f"{what}, and the training loss hardly moved ({losses[0]:.2f} to {losses[-1]:.2f}): the learning "
        f"rate is too low, or {labels}",
        _rate_flag(by_steps[0], 10),
    )


def _rate_flag(stage: dict[str, Any], factor: float) -> str:
    return f"--set stages.{stage['name']}.lr={stage['lr'] * factor:.2g}"
