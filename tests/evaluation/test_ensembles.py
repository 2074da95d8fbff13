"""Runs averaged, and the choice among the ways to do it."""

import pytest
import torch

from flowers_torch.errors import ModelFileError
from flowers_torch.evaluation.ensembles import State, choose, judge, mean_prediction, mix, soups

LABELS = (torch.tensor([0, 1] * 20), torch.tensor([1, 0] * 20))


NOISE = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def logits_of(state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """A "network" with one weight, which answers with the least noise where that is 1."""
    noise = NOISE * (0.3 + abs(float(state["w"]) - 1))
    val, test = (2 * torch.nn.functional.one_hot(labels, 2) - 1 + noise for labels in LABELS)
    return val, test


def test_the_mean_answer() -> None:
    parts = [torch.randn(5, 3), torch.randn(5, 3)]
    expected = (parts[0].softmax(1) + parts[1].softmax(1)) / 2
    assert torch.allclose(mean_prediction(parts).softmax(1), expected, atol=1e-6)
    assert torch.allclose(mean_prediction(parts).exp().sum(1), torch.ones(5), atol=1e-6)


def test_mixing_weights() -> None:
    states = [{"w": torch.tensor([v]), "n": torch.tensor(k)} for v, k in ((0.0, 3), (4.0, 9))]
    mixed = mix(states, (0.75, 0.25))
    assert mixed["w"].item() == 1.0 and mixed["n"].item() == 3
    with pytest.raises(ModelFileError, match="different networks"):
        mix([states[0], {"w": torch.zeros(2)}], (0.5, 0.5))


def test_the_line_between_two() -> None:
    states = [{"w": torch.tensor(v)} for v in (0.5, 2.5)]  # best is 1.0: a quarter of the way
    singles = [judge(n, logits_of(s), LABELS, s) for n, s in zip("ab", states, strict=True)]
    found = soups("ab", states, singles, LABELS, logits_of)
    assert [c.name for c in found][0] == "weights: 0.75 of a, 0.25 of b" and len(found) == 3
    best = choose([*singles, *found])
    assert best.state is not None and best.state["w"].item() == pytest.approx(1.0)


def test_the_greedy_soup_leaves_out_what_harms() -> None:
    states = [{"w": torch.tensor(v)} for v in (0.6, 1.4, 9.0)]
    singles = [judge(n, logits_of(s), LABELS, s) for n, s in zip("abc", states, strict=True)]
    uniform, greedy = soups("abc", states, singles, LABELS, logits_of)
    assert greedy.name == "weights: greedy soup of a, b" and greedy.state is not None
    assert greedy.state["w"].item() == pytest.approx(1.0)
    assert uniform.val.loss > greedy.val.loss
    assert choose([*singles, uniform, greedy]) is greedy


def test_the_choice_looks_at_validation_only() -> None:
    good, bad = (torch.tensor([[3.0, 0], [0, 3.0]] * 20), torch.tensor([[0, 3.0], [3.0, 0]] * 20))
    right_on_val = judge("val", (good, good), LABELS)  # the test labels are turned around: all wrong there
    right_on_test = judge("test", (bad, bad), LABELS)
    assert right_on_test.test.accuracy == 1 and right_on_val.test.accuracy == 0
    assert choose([right_on_test, right_on_val]) is right_on_val
