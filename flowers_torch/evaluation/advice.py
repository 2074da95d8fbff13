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
    mirrored: bool = False,
) -> list[Advice]:
    """Advice in order of importance; empty if nothing stands out.

    Args:
        history: One row per epoch, as in history.csv.
        stages: Settings of each stage: name, epochs, augment, and lr unless L-BFGS fits the stage.
        pretrained: Whether training started from pretrained weights.
        mirrored: Whether an option, and no measurement, says that photos may be mirrored.
    """
    finite = [row for row in history if math.isfinite(row[CRITERION])]
    if not finite:
        return []
    best = min(finite, key=lambda row: row[CRITERION])
    correct = round(best["val_accuracy"] * val_images)
    if wilson(correct, val_images)[0] <= 1 / classes:  # chance lies within the interval
        what = f"the network did not learn: validation is no better than guessing among {classes} classes"
        if mirrored and pretrained and any(stage["augment"] != "none" for stage in stages):
            reason = ": photos are mirrored in training, and perhaps a mirror turns one class into another"
            return [Advice(what + reason, "--mirror auto")]
        why, flags = _why_nothing_is_learned(history, stages, classes, pretrained)
        return [Advice(what + why, flags)]
    last, found = history[-1], []
    stage = next((each for each in stages if each["name"] == last["stage"]), stages[-1])
    name, loss, train, val = last["stage"], last[CRITERION], last["train_accuracy"], last["val_accuracy"]
    before = min((row[CRITERION] for row in finite[:-1] if row["stage"] == name), default=0.0)
    if best["stage"] != name and "lr" in stage:
        what = f"stage {name} is worse than stage {best['stage']}: its learning rate is too high for these weights"
        found.append(Advice(what, _rate_flag(stage, 1 / 3)))
    elif best is last and loss < before * (1 - STILL_FALLING):
        what = f"the calibrated validation loss was still falling in the last epoch (by {1 - loss / before:.0%})"
        epochs = ",".join(str(each["epochs"] * (2 if each is stage else 1)) for each in stages)
        found.append(Advice(what, f"--epochs {epochs}"))
    gap, augment = train - val, stage.get("augment")
    if gap > OVERFIT_GAP and loss > best[CRITERION] * 1.1:
        what = (
            f"the network memorized the training photos (accuracy {train:.2f} on them, {val:.2f} in validation, "
            "with a rising validation loss): use more photos or stronger augmentation"
        )
        stronger = "rand" if augment in ("crop", "trivial") else "crop"
        epochs = ",".join(str(each["epochs"]) for each in stages)
        found.append(Advice(what, f"--set stages.{name}.augment={stronger} --epochs {epochs}"))
    elif gap > 2 * OVERFIT_GAP:
        what = (
            f"validation accuracy ({val:.2f}) stays far behind training accuracy ({train:.2f}): more photos would "
            "help most, dropout may help"
        )
        # L-BFGS has no dropout.
        found.append(Advice(what, "--set dropout=0.3" if all("lr" in each for each in stages) else ""))
    elif gap < -2 * OVERFIT_GAP and train < 0.8 and augment not in ("none", "light"):
        numbers = f"training accuracy ({train:.2f}) is far below validation accuracy ({val:.2f})"
        what = f"{numbers}: the augmentation may be too strong"
        found.append(Advice(what, f"--set stages.{name}.augment=light"))
    return found


def _why_nothing_is_learned(
    history: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]], classes: int, pretrained: bool
) -> tuple[str, str]:
    """The end of the sentence with the most likely reason, and the flags."""
    accuracy, stage = history[-1]["train_accuracy"], stages[-1]
    if accuracy > max(2 / classes, 0.7) and "lr" in stage:
        why = "the batch-norm statistics do not fit the photos, or the labels differ between the splits"
        return f", while training reached {accuracy:.2f}: {why}", f"--set stages.{stage['name']}.batch_norm=all"
    first, last = history[0]["train_loss"], history[-1]["train_loss"]
    change = f"from {first:.2f} to {last:.2f}"
    if last > first * 1.05 and "lr" in stage:
        return f", and the training loss rose {change}: the learning rate is too high", _rate_flag(stage, 1 / 10)
    if not pretrained:
        return ": random weights need thousands of photos or many epochs", "--weights imagenet"
    labels = "the labels are unrelated to the photos (look at them with `check`)"
    with_rate = [stage for stage in stages if "lr" in stage]
    if not with_rate:
        return f": the frozen network does not tell them apart, or {labels}", ""
    why = f", and the training loss hardly moved ({change}): the learning rate is too low, or {labels}"
    return why, _rate_flag(with_rate[0], 10)


def _rate_flag(stage: dict[str, Any], factor: float) -> str:
    return f"--set stages.{stage['name']}.lr={stage['lr'] * factor:.2g}"
