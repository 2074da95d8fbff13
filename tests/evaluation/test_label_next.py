"""The choice of images to label next, with an oracle that knows all labels."""

import pytest
import torch
from torch import Tensor

from flowers_torch.evaluation.label_next import choose_next, uncertainty
from flowers_torch.evaluation.nearest import directions, least_distance, nearest
from flowers_torch.training.linear_probe import fit_logistic_regression

CLASSES = 6


def clusters(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features around a center for each class, most of them of the first class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centers = 1.8 * torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(7))
    weights = torch.tensor([20.0] + [1.0] * (CLASSES - 1))
    labels = torch.multinomial(weights, images, replacement=True, generator=generator)
    labels[:CLASSES] = torch.arange(CLASSES)
    return centers[labels] + torch.randn(images, 12, generator=generator), labels


def label_rounds(seed: int, chosen_by_next: bool, rounds: int = 4, count: int = 6) -> tuple[float, int]:
    """Mean accuracy over all classes, and labeled images of rare classes, after rounds with the oracle."""
    features, labels = clusters(300, seed)
    test, truth = clusters(600, 100 + seed)
    known, generator = list(range(CLASSES)), torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        rest = torch.tensor([i for i in range(len(features)) if i not in set(known)])
        head = fit_logistic_regression(features[known], labels[known], CLASSES)
        if chosen_by_next:
            probabilities = head.logits(features[rest]).softmax(1)
            new = [c.index for c in choose_next(features[known], features[rest], probabilities, count)]
        else:
            new = torch.randperm(len(rest), generator=generator)[:count].tolist()
        known += rest[new].tolist()
    predicted = fit_logistic_regression(features[known], labels[known], CLASSES).logits(test).argmax(1)
    recall = [float((predicted[truth == label] == label).double().mean()) for label in range(CLASSES)]
    return sum(recall) / CLASSES, int((labels[known] > 0).sum())


def test_the_oracle_labels_more_useful_images_than_by_chance() -> None:
    ours, chance = ([label_rounds(seed, chosen) for seed in range(3)] for chosen in (True, False))
    assert sum(accuracy for accuracy, _ in ours) > sum(accuracy for accuracy, _ in chance)
    assert all(rare > by_chance for (_, rare), (_, by_chance) in zip(ours, chance, strict=True))


def test_uncertainty_is_one_minus_the_margin() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.6, 0.1, 0.3]])
    assert uncertainty(probabilities).tolist() == pytest.approx([1.0, 0.0, 0.7])


def test_chosen_images_are_uncertain_and_differ() -> None:
    known = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    features = torch.tensor([[0.0, 0, 1], [0, 0, 1.001], [0, 0.2, 1], [1, 0, 0.01], [-1, -1, 0]])
    probabilities = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    chosen = choose_next(known, features, probabilities, 5)
    # Neither a copy of a chosen image (0 and 1 point in almost one direction) nor one without uncertainty (4) is early.
    assert chosen[0].index in (0, 1) and {c.index for c in chosen[:3]} >= {3} and 4 not in {c.index for c in chosen}
    assert [c.uncertainty for c in chosen] == [1.0] * len(chosen)
    assert all(a.distance >= b.distance for a, b in zip(chosen, chosen[1:], strict=False))


def test_copies_are_never_chosen() -> None:
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    half = torch.full((10, 2), 0.5)
    assert len(choose_next(torch.empty(0, 4), torch.cat([features, features]), half, 10)) == 5
    assert choose_next(features, features, half[:5], 3) == []
    assert choose_next(features, torch.empty(0, 4), torch.empty(0, 2), 3) == []
    assert len(choose_next(features, features + 1, half[:5], 0)) == 0


def test_nearest_images_and_distances() -> None:
    units = directions(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, -0.5]]))
    assert units.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert nearest(units, 0, torch.tensor([0, 1, 2, 3]), 2)[0] == 1
    assert nearest(units, 0, torch.tensor([0]), 3) == []
    assert least_distance(units, units[:1], rows=3)[0] == pytest.approx(0, abs=1e-6)
    assert least_distance(units, units[:0]).tolist() == [2.0] * 4
