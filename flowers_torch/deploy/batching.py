"""Micro-batching: requests that wait are computed together by the one thread that runs the network.

No request waits for others to fill a batch. The next batch collects while the current one is computed.
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
    """A worker thread with a queue.

    Args:
        compute: Maps items to one result each, in order; always called from the same thread.
        max_batch: Largest number of items in a batch.
    """

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], max_batch: int) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Result]":
        """Queues an item; its future receives the result, or the error of its batch.

        Raises:
            ResourceError: `close` was called.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise ResourceError("the server is stopping", "try again later")
            self._waiting.append((item, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Computes the waiting items, then ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._take():
            try:
                results = self._compute([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
            # guard: H07 batch
            except Exception as error:  # any error: the thread must survive it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _take(self) -> list[tuple[Item, "Future[Result]"]]:
        """Waits for the next batch without canceled items; empty at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                taken = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            if batch := [(item, future) for item, future in taken if future.set_running_or_notify_cancel()]:
                return batch
