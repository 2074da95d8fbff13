"""Paired comparison of two models on the same images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers_torch.errors import DataError
from flowers_torch.evaluation.comparison import (
    bootstrap_difference,
    common_images,
    compare,
    describe_choice,
    loss_change,
    mcnemar,
    relabeled_images,
)
from flowers_torch.evaluation.predictions import RunPredictions


def run(paths: str, guesses: list[int], labels: list[int], classes: tuple[str, ...] = ("x", "y")) -> RunPredictions:
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), len(classes)).float()
    return RunPredictions(classes, 1.0, {"test": tuple(paths)}, {"test": logits}, {"test": torch.tensor(labels)})


def test_images_that_changed() -> None:
    first = run("abcde", [0, 0, 1, 1, 0], [0, 0, 0, 1, 1])
    second = run("edcba", [1, 1, 0, 0, 1], [1, 1, 0, 0, 0])  # the same images in another order
    result = compare(first, second)
    assert (result.images, result.first_correct, result.second_correct) == (5, 3, 4)
    assert result.only_first == ["a"] and result.only_second == ["c", "e"]
    assert result.p_value == 1.0 and "cannot tell" in result.verdict()


def test_only_common_images_count() -> None:
    first, second = run("abc", [0, 0, 0], [0, 0, 1]), run("cd", [1, 0], [1, 0])
    assert common_images([first, second]) == ["c"]
    assert compare(first, second).images == 1
    with pytest.raises(DataError, match="no test photo in common"):
        compare(first, run("z", [0], [0]))
    with pytest.raises(DataError, match="different classes"):
        compare(first, run("a", [0], [0], ("x", "z")))


def test_images_that_the_runs_label_differently_do_not_count() -> None:
    """The second run's data were corrected: the first run's label of "b" cannot judge it."""
    first, second = run("abc", [0, 0, 1], [0, 0, 1]), run("cba", [1, 1, 0], [1, 1, 0])
    assert common_images([first, second]) == ["a", "c"] and relabeled_images([first, second]) == ["b"]
    result = compare(first, second)
    assert (result.images, result.first_correct, result.second_correct) == (2, 2, 2)
    with pytest.raises(DataError, match="no label of the 1 shared test photo is the same"):
        common_images([run("a", [0], [0]), run("a", [0], [1])])


def test_a_choice_by_few_images_may_be_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (400,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, 3) + torch.randn(400, 3, generator=generator)
    better = logits + 0.3 * torch.nn.functional.one_hot(labels, 3)
    noisy = logits + 0.1 * torch.randn(400, 3, generator=generator)
    assert loss_change(logits, logits, labels) == (0, 0)
    change, error = loss_change(logits, better, labels)
    assert change < -0.1 and "chance" not in describe_choice(change, error, 400)
    assert "on 400 validation photos changes by" in describe_choice(change, error, 400)
    assert "this may be chance" in describe_choice(*loss_change(logits[:33], noisy[:33], labels[:33]), 33)
    assert "this may be chance" in describe_choice(*loss_change(logits[:1], better[:1], labels[:1]), 1)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    if first + second == 0:
        assert mcnemar(first, second) == 1.0
        return
    expected = stats.binomtest(first, first + second, 0.5).pvalue
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_bootstrap_equals_a_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(200, generator=generator) < 0.8
    second = torch.rand(200, generator=generator) < 0.9
    low, high = bootstrap_difference(first, second)
    draws = torch.randint(200, (4000, 200), generator=generator)
    plain = (second[draws].float().mean(1) - first[draws].float().mean(1)).quantile(torch.tensor([0.025, 0.975]))
    assert (low, high) == pytest.approx(plain.tolist(), abs=0.012)
    assert bootstrap_difference(first, first) == (0.0, 0.0)


def test_a_clear_difference_is_significant() -> None:
    paths = "".join(chr(0x4E00 + i) for i in range(40))
    result = compare(run(paths, [1] * 20 + [0] * 20, [0] * 40), run(paths, [0] * 40, [0] * 40))
    assert result.p_value < 1e-4 and result.verdict().startswith("the second is better")
    assert 0.3 < result.interval[0] < 0.5 < result.interval[1] < 0.7
