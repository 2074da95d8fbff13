"""Advice on training: each rule applies to its history, and none to a good one."""

from typing import Any

import pytest

from flowers_torch.evaluation.advice import advise_on_training

STAGES = [
    {"name": "head", "epochs": 1, "lr": 3e-3, "train": "head", "augment": "light"},
    {"name": "finetune", "epochs": 3, "lr": 3e-4, "train": "all", "augment": "crop"},
]


def history(*rows: tuple[float, float, float, float]) -> list[dict[str, Any]]:
    keys = ("train_loss", "train_accuracy", "val_calibrated_loss", "val_accuracy")
    names = ["head"] + ["finetune"] * (len(rows) - 1)
    return [{"stage": name, **dict(zip(keys, row, strict=True))} for name, row in zip(names, rows, strict=True)]


@pytest.mark.parametrize(
    ("rows", "words", "flags"),
    [
        ([(2, 0.4, 1.2, 0.6), (1, 0.8, 0.5, 0.9), (0.6, 0.9, 0.40, 0.93), (0.5, 0.95, 0.398, 0.94)], "", ""),
        (
            [(2.4, 0.1, 2.4, 0.1), (2.4, 0.1, 2.4, 0.1), (2.4, 0.1, 2.4, 0.1), (2.3, 0.1, 2.3, 0.1)],
            "hardly moved",
            "--set stages.head.lr=0.03",
        ),
        (
            [(2.4, 0.1, 2.4, 0.1), (5, 0.1, 9, 0.1), (9, 0.1, 9, 0.1), (7, 0.1, 9, 0.1)],
            "rate is too high",
            "--set stages.finetune.lr=3e-05",
        ),
        (
            [(2, 0.5, 2.4, 0.1), (1, 0.8, 3, 0.1), (0.4, 0.9, 4, 0.1), (0.2, 0.98, 5, 0.1)],
            "batch-norm",
            "--set stages.finetune.batch_norm=all",
        ),
        (
            [(2, 0.4, 0.5, 0.9), (1, 0.8, 0.7, 0.85), (0.6, 0.85, 0.8, 0.83), (0.5, 0.86, 0.8, 0.83)],
            "is worse than stage head",
            "--set stages.finetune.lr=0.0001",
        ),
        (
            [(2, 0.4, 1.5, 0.5), (1, 0.6, 1.2, 0.6), (0.9, 0.65, 1.0, 0.7), (0.8, 0.7, 0.8, 0.75)],
            "still falling",
            "--epochs 1,6",
        ),
        (
            [(2, 0.4, 1.5, 0.5), (1, 0.8, 0.9, 0.7), (0.2, 0.95, 1.1, 0.7), (0.1, 1.0, 1.3, 0.7)],
            "memorized",
            "--set stages.finetune.augment=rand",
        ),
        (
            [(2, 0.4, 1.0, 0.6), (1, 0.85, 0.91, 0.69), (0.3, 0.95, 0.90, 0.7), (0.2, 0.97, 0.90, 0.7)],
            "far behind training",
            "dropout",
        ),
        (
            [(2, 0.3, 1.0, 0.7), (1.5, 0.4, 0.80, 0.8), (1.4, 0.45, 0.79, 0.8), (1.4, 0.5, 0.785, 0.8)],
            "too strong",
            "--set stages.finetune.augment=light",
        ),
    ],
)
def test_rules(rows: list[tuple[float, float, float, float]], words: str, flags: str) -> None:
    found = advise_on_training(history(*rows), STAGES, classes=10, val_images=200, pretrained=True)
    if not words:
        assert found == []
    else:
        assert len(found) == 1 and words in found[0].what and flags in found[0].flags


def test_random_weights_are_the_first_reason() -> None:
    rows = [(2.4, 0.1, 2.4, 0.1)] * 3
    (found,) = advise_on_training(history(*rows), STAGES, 10, 200, pretrained=False)
    assert "random weights" in found.what and found.flags == "--weights imagenet"


def test_an_empty_history() -> None:
    assert advise_on_training([], STAGES, 3, 10, True) == []


def test_mirroring_by_an_option_is_a_reason() -> None:
    """Not the learning rate, where a mirror may turn one class into another."""
    rows = [(0.70, 0.5, 0.70, 0.5)] * 3
    (found,) = advise_on_training(history(*rows), STAGES, 2, 200, True, mirrored=True)
    assert "perhaps a mirror turns one class into another" in found.what and found.flags == "--mirror auto"
    unmirrored = [stage | {"augment": "none"} for stage in STAGES]
    (found,) = advise_on_training(history(*rows), unmirrored, 2, 200, True, mirrored=True)
    assert "learning rate" in found.what
