"""A map of photos: their features in two dimensions."""

import torch
from torch import Tensor


def project(features: Tensor, labels: Tensor) -> Tensor:
    """Positions (N, 2) that keep the classes apart as far as two straight axes can.

    Principal components of the features, first of all photos to at most 50 (which takes out noise), then of
    the class means (which looks from the side from which the classes differ most). A photo's place depends on
    its features only, so that photos of a class that lie far off are worth a look.

    Args:
        features: (N, D), at least two photos.
        labels: (N,).
    """
    centred = (features - features.mean(0)).double()
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = int(min(50, max(2, (values > values[0] * 1e-6).sum())))
    reduced = centred @ axes[:kept].T
    reduced = reduced / reduced.square().mean().sqrt().clamp(min=1e-12)
    means = torch.stack([reduced[labels == label].mean(0) for label in labels.unique()])
    if len(means) > 2:
        directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)[2][:2]
    else:
        directions = torch.linalg.svd(reduced, full_matrices=False)[2][:2]
    # An axis may point either way; the sign is fixed, so that the same photos give the same map.
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return (reduced @ (directions * signs).T).float()
