"""Work in threads that share the cores, in place of one thread whose every operation is divided among all cores.

An operation of torch on a few images or on a small matrix ends earlier than its threads have met again.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


@contextlib.contextmanager
def cores_for_torch(count: int) -> Iterator[None]:
    """Inside, an operation of torch uses so many cores in this thread, and in threads that start there."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_threads(
    function: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int = 1
) -> Iterator[Made]:
    """`map` by several threads, each with its share of torch's cores; with one thread, plain `map`.

    The results come in the order of the items, which this thread takes: at most `ahead` for each thread before the
    result of the first of them is taken. An error of the function is raised in place of its result.
    """
    if threads == 1:
        yield from map(function, items)
        return
    cores = max(1, torch.get_num_threads() // threads)
    pending: deque[Future[Made]] = deque()
    with (
        cores_for_torch(cores),
        ThreadPoolExecutor(threads, "computing", torch.set_num_threads, (cores,)) as pool,
    ):
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == ahead * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also where the caller stops early
            pool.shutdown(cancel_futures=True)
