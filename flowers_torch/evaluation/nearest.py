"""Images with the most similar features."""

import torch
import torch.nn.functional as F
from torch import Tensor


def directions(features: Tensor) -> Tensor:
    """Features (N, D) as unit vectors around their mean, so that a dot product is the cosine similarity."""
    return F.normalize(features - features.mean(0), dim=1)


def nearest(units: Tensor, index: int, candidates: Tensor, count: int) -> list[int]:
    """The `count` images among `candidates` (M,) that are most similar to an image, most similar first.

    Args:
        units: (N, D), from `directions`.
        index: Of the image, which is not among its own neighbors.
        candidates: Indices (M,).
        count: Images to return; fewer if there are fewer candidates.
    """
    others = candidates[candidates != index]
    similarity = units[others] @ units[index]
    best: list[int] = others[similarity.topk(min(count, len(others))).indices].tolist()
    return best


def least_distance(units: Tensor, centers: Tensor, rows: int = 4096) -> Tensor:
    """The cosine distance (N,) of each image (N, D) to the nearest of the centers (M, D); 2 without centers."""
    if not len(centers):
        return units.new_full((len(units),), 2.0)
    chunks = [1 - (chunk @ centers.T).amax(1) for chunk in units.split(rows)]
    return torch.cat(chunks).clamp(min=0) if chunks else units.new_empty(0)
