"""L-BFGS for smooth convex functions.

torch has it too, but the first optimizer that a process makes there imports torch._dynamo, which takes longer than a
linear head takes to be fitted.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 10  # steps whose curvature is remembered
SUFFICIENT = 1e-4  # of the decrease that the slope promises
ROUNDING = 1e-4  # relative, of a value in float32 that is the sum of large terms
MAX_HALVINGS = 25  # of a step; only rounding needs more


def minimize(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    steps: int,
    least_gradient: float,
    least_change: float,
) -> Tensor:
    """The point (D,) with the lowest value, or the last one after some steps.

    Args:
        function: Value, a scalar, and gradient (D,) at a point.
        start: The first point (D,).
        steps: At most.
        least_gradient: The largest component of the gradient at which the search ends.
        least_change: The largest component of a step, and the change of the value, at which the search ends.
    """
    point = start
    value, gradient = function(point)
    memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)  # steps, and changes of the gradient
    for _ in range(steps):
        if float(gradient.abs().max()) <= least_gradient:
            break
        direction = -_times_inverse_curvature(gradient, memory)
        slope = torch.dot(gradient, direction)
        for halvings in range(MAX_HALVINGS):
            step = direction * 0.5**halvings
            new_value, new_gradient = function(point + step)
            decreases = new_value <= value + SUFFICIENT * 0.5**halvings * slope
            # Near the optimum the value changes by less than its rounding. There the slope must not have grown.
            is_flat = new_value <= value + ROUNDING * value.abs()
            if decreases or (is_flat and torch.dot(new_gradient, direction) <= -slope):
                break
        else:
            break
        memory.append((step, new_gradient - gradient))
        change = max(float(step.abs().max()), float(value - new_value))
        point, value, gradient = point + step, new_value, new_gradient
        if change <= least_change:
            break
    return point


def _times_inverse_curvature(gradient: Tensor, memory: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient times the inverse Hessian that the last steps suggest, by the two-loop recursion."""
    vector, factors = gradient.clone(), []
    curved = [(step, change, torch.dot(step, change)) for step, change in memory]
    for step, change, product in reversed(curved):
        factor = torch.dot(step, vector) / product
        vector -= factor * change
        factors.append(factor)
    if curved:
        _, change, product = curved[-1]
        vector *= product / torch.dot(change, change)
    for (step, change, product), factor in zip(curved, reversed(factors), strict=True):
        vector += step * (factor - torch.dot(change, vector) / product)
    return vector
