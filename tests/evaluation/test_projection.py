"""The t-SNE projection of features."""

import pytest
import torch

from flowers_torch.evaluation.projection import project_features


def groups(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(100) % 5
    centers = 4 * torch.randn(5, 20, generator=generator)
    return centers[labels] + torch.randn(100, 20, generator=generator), labels


def test_groups_are_separated_and_the_result_is_deterministic() -> None:
    features, labels = groups()
    places = project_features(features)
    assert places.shape == (100, 2) and torch.isfinite(places).all()
    nearest = (torch.cdist(places, places) + 1e9 * torch.eye(100)).argmin(1)
    assert (labels[nearest] == labels).float().mean() > 0.97
    assert torch.equal(project_features(features), places)


def test_neighbors_are_preserved() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    features, _ = groups(1)
    ours = manifold.trustworthiness(features.numpy(), project_features(features).numpy(), n_neighbors=10)
    flat = manifold.trustworthiness(features.numpy(), features[:, :2].numpy(), n_neighbors=10)
    assert ours > 0.9 > flat


def test_few_and_flat_features() -> None:
    assert project_features(torch.randn(6, 1)).shape == (6, 2)
    assert torch.isfinite(project_features(torch.zeros(5, 5))).all()
