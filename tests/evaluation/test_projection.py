"""The map of photos."""

import torch

from flowers_torch.evaluation.projection import project


def test_classes_lie_apart_and_the_map_is_always_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    centres = torch.zeros(3, 20)
    centres[[0, 1, 2], [4, 9, 14]] = 8.0
    features = centres[labels] + torch.randn(90, 20, generator=generator)
    places = project(features, labels)
    assert places.shape == (90, 2)
    means = torch.stack([places[labels == c].mean(0) for c in range(3)])
    inside = max(float((places[labels == c] - means[c]).norm(dim=1).mean()) for c in range(3))
    assert float(torch.pdist(means).min()) > 4 * inside
    assert torch.allclose(project(features + 5, labels), places, atol=1e-4)  # the origin does not matter


def test_two_classes_and_flat_features() -> None:
    assert project(torch.randn(6, 5), torch.tensor([0, 1] * 3)).shape == (6, 2)
    assert torch.isfinite(project(torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]))).all()
