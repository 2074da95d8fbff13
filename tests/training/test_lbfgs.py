"""L-BFGS against closed forms."""

import math

import torch
from torch import Tensor

from flowers_torch.training.lbfgs import minimize

ENDS = (300, 1e-9, 1e-14)  # steps, gradient, change


def test_the_lowest_point_of_a_stretched_bowl() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))
    curvature = basis @ torch.diag(torch.logspace(0, 2, 20, dtype=torch.float64)) @ basis.T
    lowest = torch.randn(20, generator=generator, dtype=torch.float64)

    def bowl(point: Tensor) -> tuple[Tensor, Tensor]:
        gradient = curvature @ (point - lowest)
        return (point - lowest) @ gradient / 2, gradient

    torch.testing.assert_close(minimize(bowl, torch.zeros_like(lowest), *ENDS), lowest)
    torch.testing.assert_close(minimize(bowl, lowest, *ENDS), lowest)
    assert (minimize(bowl, torch.zeros_like(lowest), 3, 1e-9, 1e-14) - lowest).norm() > 0.01


def test_a_first_step_that_is_far_too_long_is_halved() -> None:
    def valley(point: Tensor) -> tuple[Tensor, Tensor]:
        """log(2 cosh(50 x)), whose slope is 50 nearly everywhere."""
        return torch.logaddexp(50 * point, -50 * point).sum(), 50 * torch.tanh(50 * point)

    found = minimize(valley, torch.tensor([0.7, -0.2], dtype=torch.float64), *ENDS)
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_values_that_are_not_finite_leave_the_start() -> None:
    start = torch.ones(3)
    found = minimize(lambda point: (torch.tensor(math.nan), torch.full_like(point, math.nan)), start, 5, 0.0, 0.0)
    assert torch.equal(found, start)
