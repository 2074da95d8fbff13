"""A map of photos: their features in two dimensions, photos that look alike to the network side by side."""

import math

import torch
from torch import Tensor

MOST = 800  # photos on a map; beyond, dots hide each other and t-SNE takes long
COMPONENTS = 50  # of the features that the neighbourhood is judged by


def map_images(features: Tensor, perplexity: float = 30.0, steps: int = 300) -> Tensor:
    """Positions (N, 2) by t-SNE (van der Maaten and Hinton 2008), always the same for the same photos.

    It begins with the two principal components, so that no chance is in it. Near photos stay near; distances
    between far groups mean nothing.

    Args:
        features: (N, D), at least 4 photos; meant for at most `MOST`.
        perplexity: About how many neighbours a photo has; fewer where there are few photos.
        steps: Of gradient descent.
    """
    points = _principal(features, COMPONENTS)
    near = _neighbourhood(points, min(perplexity, (len(points) - 1) / 3))
    places = points[:, :2] / points[:, 0].std().clamp(min=1e-12) * 1e-4
    speed, gains = torch.zeros_like(places), torch.ones_like(places)
    rate = max(len(points) / 48, 50.0)  # sklearn's "auto"
    for step in range(steps):
        early = step < steps // 3
        weights = 1 / (1 + torch.cdist(places, places).square())
        weights.fill_diagonal_(0)
        pull = (12.0 if early else 1.0) * near - weights / weights.sum()
        pull = pull * weights
        slope = 4 * (pull.sum(1, keepdim=True) * places - pull @ places)
        gains = torch.where(slope * speed < 0, gains + 0.2, gains * 0.8).clamp(min=0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * slope
        places = places + speed
    return (places - places.mean(0)).float()


def _principal(features: Tensor, most: int) -> Tensor:
    """The first principal components, with signs that do not depend on the solver; at least two columns."""
    centred = (features - features.mean(0)).double()
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:most]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    points = centred @ (axes * signs).T
    return torch.nn.functional.pad(points, (0, max(0, 2 - points.shape[1])))


def _neighbourhood(points: Tensor, perplexity: float) -> Tensor:
    """Symmetric probabilities (N, N) that two photos are neighbours; widths are fitted by bisection."""
    distances = torch.cdist(points, points).square()
    distances = distances / distances.mean().clamp(min=1e-12)
    itself = torch.eye(len(points), dtype=torch.bool)
    low = torch.full((len(points), 1), math.log(1e-4), dtype=points.dtype)
    high = torch.full_like(low, math.log(1e6))
    for _ in range(50):
        sharpness = ((low + high) / 2).exp()
        chances = (-distances * sharpness).masked_fill(itself, -math.inf).softmax(1)
        entropy = torch.special.entr(chances).sum(1, keepdim=True)
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, (low + high) / 2, low), torch.where(wide, high, (low + high) / 2)
    return (chances + chances.T) / (2 * len(points))
