"""A linear classifier on features, fitted to its optimum in seconds."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.files.threads import cores_for_torch

STEPS = 60  # of L-BFGS, at most
L2_GRID = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)  # strongest first
FIRST = 100.0  # the penalty that is tried first
MANY_FEATURES = 2048  # beyond which few images are fitted in the space that they span
ONE_CORE_VALUES = 1 << 23  # of features (N, D), up to which one core is faster than several together


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardized features."""

    mean: Tensor
    scale: Tensor
    weight: Tensor  # (classes, D)
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, D)."""
        return (features - self.mean) / self.scale @ self.weight.T + self.bias

    def layer(self) -> tuple[Tensor, Tensor]:
        """Weight (classes, D) and bias (classes,) of a layer that computes the same from raw features."""
        weight = self.weight / self.scale
        return weight, self.bias - weight @ self.mean


def fit_logistic_regression(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float = 1.0,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> LinearProbe:
    """Fits a probe by L-BFGS. The same features always give the same probe.

    Args:
        features: (N, D).
        labels: (N,).
        classes: Number of classes; those without an image get low probabilities.
        l2: Penalty, l2 / (2 N) times the squared weights, as scikit-learn's with C = 1 / l2.
        class_weights: Of the classes in the loss.
        label_smoothing: Of the loss.
    """
    with cores_for_torch(1 if features.numel() <= ONE_CORE_VALUES else torch.get_num_threads()):
        return _fit(features, labels, classes, l2, (class_weights, label_smoothing))


def _fit(
    features: Tensor, labels: Tensor, classes: int, l2: float, weighting: tuple[Tensor | None, float]
) -> LinearProbe:
    mean = features.mean(0)
    # One scale for all features, so that small features stay small.
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-12)
    inputs = (features - mean) / scale
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight.T + bias
        loss = F.cross_entropy(logits, labels, weighting[0], label_smoothing=weighting[1])
        loss = loss + l2 / (2 * len(labels)) * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


def fit_linear_probe(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    classes: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    grid: Sequence[float] = L2_GRID,
) -> tuple[LinearProbe, float]:
    """The probe with the lowest validation loss over a grid of penalties, and its penalty.

    Starting at `FIRST`, the penalty falls until the loss has risen twice in a row, because weaker penalties
    take longer to fit. If the first penalty was the best, stronger ones are tried in the same way.

    Args:
        train: Features (N, D) and labels (N,).
        validation: Features (M, D) and labels (M,).
        class_weights: As in `fit_logistic_regression`, like `label_smoothing`.
        label_smoothing: Of the loss.
        grid: Penalties, strongest first.
    """
    tried: dict[int, tuple[float, LinearProbe]] = {}
    (features, labels), basis = train, _basis(train[0])
    width, center = features.shape[1], features.mean(0)
    if basis is not None:
        features = (features - center) @ basis

    def best() -> int:
        return min(tried, key=lambda place: tried[place][0])

    def walk(places: Iterable[int]) -> None:
        for place in places:
            l2 = grid[place] * (features.shape[1] / width)  # fewer features have a larger scale
            probe = fit_logistic_regression(features, labels, classes, l2, class_weights, label_smoothing)
            if basis is not None:
                probe = _in_full_space(probe, center, basis)
            loss = float(F.cross_entropy(probe.logits(validation[0]), validation[1]))
            tried[place] = loss, probe
            if abs(place - best()) == 2:
                return

    first = grid.index(FIRST) if FIRST in grid else 0
    walk(range(first, len(grid)))
    if best() == first:
        walk(range(first - 1, -1, -1))
    return tried[best()][1], grid[best()]


def _basis(features: Tensor) -> Tensor | None:
    """An orthonormal basis (D, R) of what few images span, if they have many features (N, D); else None.

    The optimum lies in this space, and the penalty does not depend on the basis, so the fit is the same and faster.
    """
    images, width = features.shape
    if width <= max(MANY_FEATURES, 2 * images):
        return None
    centered = features - features.mean(0)
    values, vectors = torch.linalg.eigh((centered @ centered.T).double())
    kept = values > 1e-7 * values[-1]
    return (centered.T.double() @ vectors[:, kept] / values[kept].sqrt()).float()


def _in_full_space(probe: LinearProbe, center: Tensor, basis: Tensor) -> LinearProbe:
    """A probe on `(features - center) @ basis` as one on features."""
    bias = probe.bias - probe.weight @ (probe.mean / probe.scale)
    return LinearProbe(center, probe.scale, probe.weight @ basis.T, bias)
