"""Learning rates, drops on plateaus, and the end of a stage."""

import math

import pytest

from flowers_torch.training.schedules import learning_rate, out_of_patience, plateau_multiplier


def test_cosine_with_warm_up() -> None:
    rates = [learning_rate(step, 100, 1.0, "cosine", warmup=10) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[-1] < 0.001


def test_constant() -> None:
    assert [learning_rate(step, 5, 0.1, "constant") for step in range(5)] == [0.1] * 5


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="'linear' is not a valid schedule"):
        learning_rate(0, 1, 0.1, "linear")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 1.0),
        ([3.0, 2.0, 1.0], 1.0),
        ([1.0, 1.0, 1.0], 0.1),  # the first is the best, then two epochs without an improvement
        ([1.0, 0.99995, 1.0], 0.1),  # less than min_delta does not count as an improvement
        ([1.0, 0.9, 1.0, 1.0], 0.1),
        ([1.0, 1.0, 0.5, 0.6], 1.0),  # an improvement restarts the count
        ([1.0, 1.0, 1.0, 1.0], 0.1),  # and so does a drop
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.01),
        ([math.nan, math.nan, 1.0], 0.1),
    ],
)
def test_drops_follow_keras(losses: list[float], expected: float) -> None:
    assert plateau_multiplier(losses, 2) == pytest.approx(expected)
    assert plateau_multiplier([1.0] * 10) == 1.0 and plateau_multiplier([1.0] * 11) == 0.1  # Keras's patience


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
