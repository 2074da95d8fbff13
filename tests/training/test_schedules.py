"""Drops and ends that the validation losses ask for."""

import math

import pytest

from flowers_torch.training.schedules import out_of_patience, plateau_multiplier


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 1.0),
        ([3.0, 2.0, 1.0], 1.0),
        ([1.0, 1.0, 1.0], 0.5),  # the first is the best, two epochs of waiting
        ([1.0, 0.99995, 1.0], 0.5),  # less than min_delta is no improvement
        ([1.0, 0.9, 1.0, 1.0], 0.5),
        ([1.0, 1.0, 0.5, 0.6], 1.0),  # an improvement starts the waiting anew
        ([1.0, 1.0, 1.0, 1.0], 0.5),  # and so does a drop
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.25),
        ([math.nan, math.nan, 1.0], 0.5),
    ],
)
def test_drops_as_keras_makes_them(losses: list[float], expected: float) -> None:
    assert plateau_multiplier(losses, factor=0.5, patience=2) == expected


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, False),
        ([1.0, 2.0], 1, True),
        ([1.0, 2.0], 2, False),
        ([1.0, 2.0, 0.9, 1.0], 2, False),
        ([1.0, 2.0, 0.9, 1.0, 0.9], 2, True),
        ([math.nan, math.nan], 2, True),
        ([1.0, 2.0, 3.0], 0, False),
    ],
)
def test_patience(losses: list[float], patience: int, expected: bool) -> None:
    assert out_of_patience(losses, patience) is expected
