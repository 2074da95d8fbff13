"""A linear classifier on features, fitted to its optimum in seconds."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.files.threads import cores_for_torch
from flowers_torch.training.lbfgs import minimize

STEPS = 100  # of L-BFGS, at most; it converges in 15 to 40
LEAST_GRADIENT, LEAST_CHANGE = 1e-6, 1e-7  # below which L-BFGS ends
L2_GRID = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)  # strongest first
FIRST = 100.0  # the penalty that is tried first
SMALL = 1e-7  # of the sum of the diagonal, which is added to it: rounding in float32 is of this order
ROWS = 4096  # that are centered at a time
TRIES = 6  # with ten times the last addition each; only features that are not finite need more
ONE_CORE_VALUES = 1 << 23  # of features (N, D), up to which one core is faster than several together


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression."""

    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, D)."""
        return features @ self.weight.T + self.bias


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
        l2: Penalty, l2 / (2 N) times the squared weights of features that are centered and have unit variance on
            average, as scikit-learn's with C = 1 / l2.
        class_weights: Of the classes in the loss.
        label_smoothing: Of the loss.
    """
    return _Fits(features, labels, classes, class_weights, label_smoothing).probe(l2)


def fit_linear_probe(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    classes: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    grid: Sequence[float] = L2_GRID,
) -> tuple[LinearProbe, float]:
    """The probe with the lowest validation loss over a grid of penalties, and its penalty.

    Starting at `FIRST`, the penalty falls until the loss has risen twice in a row. If the first penalty was the best,
    stronger ones are tried in the same way.

    Args:
        train: Features (N, D) and labels (N,).
        validation: Features (M, D) and labels (M,).
        class_weights: As in `fit_logistic_regression`, like `label_smoothing`.
        label_smoothing: Of the loss.
        grid: Penalties, strongest first.
    """
    tried: dict[int, tuple[float, LinearProbe]] = {}
    fits = _Fits(*train, classes, class_weights, label_smoothing)

    def best() -> int:
        return min(tried, key=lambda place: tried[place][0])

    def walk(places: Iterable[int]) -> None:
        for place in places:
            probe = fits.probe(grid[place])
            tried[place] = float(F.cross_entropy(probe.logits(validation[0]), validation[1])), probe
            if abs(place - best()) == 2:
                return

    first = grid.index(FIRST) if FIRST in grid else 0
    walk(range(first, len(grid)))
    if best() == first:
        walk(range(first - 1, -1, -1))
    return tried[best()][1], grid[best()]


class _Fits:
    """Fits with several penalties, each of which starts where the last one ended."""

    def __init__(
        self, features: Tensor, labels: Tensor, classes: int, class_weights: Tensor | None, label_smoothing: float
    ) -> None:
        self.labels, self.class_weights, self.label_smoothing = labels, class_weights, label_smoothing
        self.cores = 1 if features.numel() <= ONE_CORE_VALUES else torch.get_num_threads()
        images, width = features.shape
        with cores_for_torch(self.cores):
            self.span = _Span(features) if images < width else None
            self.inputs = self.span.coordinates if self.span else features
            # Large features are centered and scaled by way of the weights, without a copy.
            self.center = self.inputs.mean(0)
            products = sum(part.T @ part for part in (rows - self.center for rows in self.inputs.split(ROWS)))
            # One scale for all features, so that small features stay small.
            self.scale = (products.trace() / (images * width)).sqrt().clamp(min=1e-12)
            self.covariance = products / (images * self.scale**2)
        self.weight, self.bias = torch.zeros(classes, self.inputs.shape[1]), torch.zeros(classes)

    def probe(self, l2: float) -> LinearProbe:
        """The probe of a penalty, on features as they were given."""
        with cores_for_torch(self.cores):
            self._minimize(l2 / len(self.labels))
            weight, bias = self._layer(self.weight, self.bias)
            return LinearProbe(*(self.span.layer(weight, bias) if self.span else (weight, bias)))

    def _layer(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias for the inputs from those for centered and scaled ones."""
        weight = weight / self.scale
        return weight, bias - weight @ self.center

    def _minimize(self, penalty: float) -> None:
        """L-BFGS in coordinates in which the loss is about equally curved in all directions."""
        root, inverse = self._curvature_root(penalty)
        sizes = [self.weight.numel(), self.bias.numel()]

        def parts(point: Tensor) -> tuple[Tensor, Tensor]:
            steep, bias = point.split(sizes)
            return steep.view_as(self.weight) @ inverse, bias

        def loss(point: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                weight, bias = parts(point)
                logits = F.linear(self.inputs, *self._layer(weight, bias))
                value = F.cross_entropy(logits, self.labels, self.class_weights, label_smoothing=self.label_smoothing)
                value = value + penalty / 2 * weight.square().sum()
                value.backward()
            return value.detach(), point.grad  # type: ignore[return-value]

        start = torch.cat([(self.weight @ root).flatten(), self.bias])
        self.weight, self.bias = parts(minimize(loss, start, STEPS, LEAST_GRADIENT, LEAST_CHANGE))

    def _curvature_root(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Cholesky factor (R, R), and its inverse, of the mean curvature of the loss over the classes."""
        share = F.linear(self.inputs, *self._layer(self.weight, self.bias)).softmax(1)
        curvature = (share * (1 - share)).mean() * self.covariance
        curvature.diagonal().add_(penalty)
        root = _cholesky(curvature, SMALL * float(curvature.trace()))
        return root, torch.linalg.solve_triangular(root, torch.eye(len(root)), upper=False)


class _Span:
    """Coordinates of the space that few images with many features (N, D) span.

    The optimum lies in this space, and the penalty is the same in all orthonormal coordinates.
    """

    def __init__(self, features: Tensor) -> None:
        self.center = features.mean(0)
        self.centered = features - self.center
        products = (self.centered @ self.centered.T).double()
        self.root = _cholesky(products, SMALL * float(products.trace()) + 1e-30)  # 0 where all images are equal
        self.coordinates = self.root.float()  # (N, N), whose inner products are those of the centered images

    def layer(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (classes, D) and bias for features from those for coordinates."""
        of_images = torch.linalg.solve_triangular(self.root.T, weight.T.double(), upper=True).float()
        weight = of_images.T @ self.centered
        return weight, bias - weight @ self.center


def _cholesky(matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of a matrix that is positive definite but for rounding."""
    for _ in range(TRIES):
        matrix.diagonal().add_(ridge)
        root, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            break
        ridge *= 10
    return root
