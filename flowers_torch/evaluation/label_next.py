"""Which unlabeled images to label next: uncertain ones that differ from each other and from the known ones.

The choice is a greedy k-center (Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
Approach") whose distances are weighted with the uncertainty of the model, one minus the margin between the two most
probable classes (Scheffer et al. 2001).
"""

import dataclasses

import torch
from torch import Tensor

from flowers_torch.evaluation.nearest import directions, least_distance

SAME = 1e-5  # cosine distance of two copies, computed with float32


@dataclasses.dataclass(frozen=True)
class Choice:
    """An image to label, with the reasons."""

    index: int
    uncertainty: float  # 1 - the margin between the two most probable classes
    distance: float  # cosine distance to the nearest image that is known or chosen earlier, 0 .. 2


def uncertainty(probabilities: Tensor) -> Tensor:
    """One minus the margin between the two most probable classes, (N,) from (N, classes): 1 where they are equal."""
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


def choose_next(known: Tensor, features: Tensor, probabilities: Tensor, count: int) -> list[Choice]:
    """The `count` unlabeled images that are worth labeling most, the best first.

    Images without any distance to the known or chosen ones, such as copies, are never chosen, so the list may be
    shorter.

    Args:
        known: Features (M, D) of the labeled images.
        features: Features (N, D) of the unlabeled images.
        probabilities: (N, classes) of the unlabeled images.
        count: Images to choose.
    """
    units = directions(torch.cat([known, features]))
    centers, units = units[: len(known)], units[len(known) :]
    distance, weight = least_distance(units, centers), uncertainty(probabilities)
    chosen: list[Choice] = []
    while len(chosen) < min(count, len(units)):
        score = weight * distance
        best = int(score.argmax())
        if float(distance[best]) < SAME or float(score[best]) <= 0:
            break
        chosen.append(Choice(best, float(weight[best]), float(distance[best])))
        distance = torch.minimum(distance, (1 - units @ units[best]).clamp(min=0))
        distance[best] = 0.0
    return chosen
