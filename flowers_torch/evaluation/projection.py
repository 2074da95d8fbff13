"""Two-dimensional projection of image features by t-SNE."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.files.threads import cores_for_torch

MAX_POINTS = 800  # more points hide each other in a plot and take long
COMPONENTS = 50  # principal components from which distances are computed
PERPLEXITY = 30.0  # approximate number of neighbors of an image
STEPS = 300  # of gradient descent


def project_features(features: Tensor) -> Tensor:
    """Positions (N, 2) by t-SNE (van der Maaten and Hinton 2008) of at least 4 images.

    The result is deterministic, because the first two principal components initialize it. Distances between
    clusters that are far apart carry no meaning.
    """
    with cores_for_torch(1):  # several take three times as long for so few points
        return _project(features)


def _project(features: Tensor) -> Tensor:
    points = _principal_components(features)
    near = _neighbor_probabilities(points, min(PERPLEXITY, (len(points) - 1) / 3))
    positions = points[:, :2] / points[:, 0].std().clamp(min=1e-12) * 1e-4
    speed, gains = torch.zeros_like(positions), torch.ones_like(positions)
    rate = max(len(points) / 48, 50.0)  # scikit-learn's "auto"
    for step in range(STEPS):
        early = step < STEPS // 3
        weights = 1 / (1 + torch.cdist(positions, positions).square())
        weights.fill_diagonal_(0)
        pull = (12.0 if early else 1.0) * near - weights / weights.sum()
        pull = pull * weights
        slope = 4 * (pull.sum(1, keepdim=True) * positions - pull @ positions)
        gains = torch.where(slope * speed < 0, gains + 0.2, gains * 0.8).clamp(min=0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * slope
        positions = positions + speed
    return (positions - positions.mean(0)).float()


def _principal_components(features: Tensor) -> Tensor:
    """The first principal components with deterministic signs; at least two columns."""
    centered = (features - features.mean(0)).double()
    values, vectors = torch.linalg.eigh(centered @ centered.T)  # of images, which are fewer than features
    values, vectors = values.flip(0)[:COMPONENTS].clamp(min=0), vectors.flip(1)[:, :COMPONENTS]
    axes = vectors.T @ centered
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()[:, 0]
    points = vectors * values.sqrt() * signs
    return F.pad(points, (0, max(0, 2 - points.shape[1])))


def _neighbor_probabilities(points: Tensor, perplexity: float) -> Tensor:
    """Symmetric probabilities (N, N) that two points are neighbors; bisection fits the bandwidths."""
    distances = torch.cdist(points, points).square()
    distances = distances / distances.mean().clamp(min=1e-12)
    diagonal = torch.eye(len(points), dtype=torch.bool)
    low = torch.full((len(points), 1), math.log(1e-4), dtype=points.dtype)
    high = torch.full_like(low, math.log(1e6))
    for _ in range(50):
        middle = (low + high) / 2
        chances = (-distances * middle.exp()).masked_fill(diagonal, -math.inf).softmax(1)
        entropy = torch.special.entr(chances).sum(1, keepdim=True)
        too_wide = entropy > math.log(perplexity)
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    return (chances + chances.T) / (2 * len(points))
