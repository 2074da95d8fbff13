"""Ensembles and model soups, and the choice between them."""

import pytest
import torch

from flowers_torch.errors import ModelFileError
from flowers_torch.evaluation.ensembles import (
    State,
    average_weights,
    best_candidate,
    mean_prediction,
    model_soups,
    score_candidate,
)

LABELS = (torch.tensor([0, 1] * 20), torch.tensor([1, 0] * 20))

NOISE = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def logits_of(state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """A "network" with one weight, whose predictions have the least noise at weight 1."""
    noise = NOISE * (0.3 + abs(float(state["w"]) - 1))
    val, test = (2 * torch.nn.functional.one_hot(labels, 2) - 1 + noise for labels in LABELS)
    return val, test


def test_the_mean_prediction() -> None:
    logits = [torch.randn(5, 3), torch.randn(5, 3)]
    expected = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    assert torch.allclose(mean_prediction(logits).softmax(1), expected, atol=1e-6)
    assert torch.allclose(mean_prediction(logits).exp().sum(1), torch.ones(5), atol=1e-6)


def test_mixing_weights() -> None:
    states = [{"w": torch.tensor([v]), "n": torch.tensor(k)} for v, k in ((0.0, 3), (4.0, 9))]
    mixed = average_weights(states, (0.75, 0.25))
    assert mixed["w"].item() == 1.0 and mixed["n"].item() == 3
    with pytest.raises(ModelFileError, match="different networks"):
        average_weights([states[0], {"w": torch.zeros(2)}], (0.5, 0.5))


def test_interpolation_between_two() -> None:
    states = [{"w": torch.tensor(v)} for v in (0.5, 2.5)]  # best is 1.0: a quarter of the way
    singles = [score_candidate(n, logits_of(s), LABELS, s) for n, s in zip("ab", states, strict=True)]
    found = model_soups("ab", states, singles, LABELS, logits_of)
    assert [c.name for c in found][0] == "weights: 0.75 of a, 0.25 of b" and len(found) == 3
    best = best_candidate([*singles, *found])
    assert best.state is not None and best.state["w"].item() == pytest.approx(1.0)


def test_the_greedy_soup_leaves_out_bad_weights() -> None:
    states = [{"w": torch.tensor(v)} for v in (0.6, 1.4, 9.0)]
    singles = [score_candidate(n, logits_of(s), LABELS, s) for n, s in zip("abc", states, strict=True)]
    uniform, greedy = model_soups("abc", states, singles, LABELS, logits_of)
    assert greedy.name == "weights: greedy soup of a, b" and greedy.state is not None
    assert greedy.state["w"].item() == pytest.approx(1.0)
    assert uniform.val.loss > greedy.val.loss
    assert best_candidate([*singles, uniform, greedy]) is greedy


def test_the_choice_uses_validation_only() -> None:
    good, bad = (torch.tensor([[3.0, 0], [0, 3.0]] * 20), torch.tensor([[0, 3.0], [3.0, 0]] * 20))
    right_on_val = score_candidate("val", (good, good), LABELS)  # all wrong on the inverted test labels
    right_on_test = score_candidate("test", (bad, bad), LABELS)
    assert right_on_test.test.accuracy == 1 and right_on_val.test.accuracy == 0
    assert best_candidate([right_on_test, right_on_val]) is right_on_val
