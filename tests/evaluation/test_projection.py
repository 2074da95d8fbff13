"""The map of photos."""

import pytest
import torch

from flowers_torch.evaluation.projection import map_images


def groups(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(100) % 5
    centres = 4 * torch.randn(5, 20, generator=generator)
    return centres[labels] + torch.randn(100, 20, generator=generator), labels


def test_groups_lie_apart_and_the_map_is_always_the_same() -> None:
    features, labels = groups()
    places = map_images(features)
    assert places.shape == (100, 2) and torch.isfinite(places).all()
    nearest = (torch.cdist(places, places) + 1e9 * torch.eye(100)).argmin(1)
    assert (labels[nearest] == labels).float().mean() > 0.97
    assert torch.equal(map_images(features), places)


def test_neighbours_stay_neighbours_as_with_scikit_learn() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    features, _ = groups(1)
    ours = manifold.trustworthiness(features.numpy(), map_images(features).numpy(), n_neighbors=10)
    flat = manifold.trustworthiness(features.numpy(), features[:, :2].numpy(), n_neighbors=10)
    assert ours > 0.9 > flat


def test_few_and_flat_features() -> None:
    assert map_images(torch.randn(6, 1)).shape == (6, 2)
    assert torch.isfinite(map_images(torch.zeros(5, 5))).all()
