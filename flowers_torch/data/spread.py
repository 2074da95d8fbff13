"""How a function of a list is computed: in this process, or in several that `training.distributed` connects."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Spread(Protocol):
    """Computes `work(items)`, a result for each item. Several processes get every so many whole blocks of items."""

    def __call__(self, work: Callable[[Sequence[T]], list[R]], items: Sequence[T], block: int = 1) -> list[R]: ...


def alone(work: Callable[[Sequence[T]], list[R]], items: Sequence[T], block: int = 1) -> list[R]:
    """The `Spread` of one process."""
    return work(items)
