"""Micro-batching: what waits is computed together, by the one thread that runs the network.

Nothing is held back for company: while a batch is computed the next one gathers, so that a lone request is
answered at once and a crowd shares the cost of a pass.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from flowers_torch.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """A thread with a queue in front of it.

    Args:
        compute: Items to results, one each, in order. Called by one thread only, so it may keep state.
        most: Items in a batch.
    """

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], most: int) -> None:
        self._compute = compute
        self._most = most
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Result]":
        """Queues an item; its future gets the result, or the error of its batch.

        Raises:
            ResourceError: `close` was called.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise ResourceError("the server is stopping", "ask again later")
            self._waiting.append((item, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Computes what still waits, then ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether items would be computed."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._take():
            try:
                results = self._compute([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
            # guard: H07 batch
            except Exception as error:  # of whatever kind: the next batch is to be computed all the same
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _take(self) -> list[tuple[Item, "Future[Result]"]]:
        """The next batch, once there is one; empty at the end. Who has gone meanwhile is left out."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            if batch := [(item, future) for item, future in taken if future.set_running_or_notify_cancel()]:
                return batch
