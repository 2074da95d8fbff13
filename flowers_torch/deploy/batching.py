"""Micro-batching: requests that wait are computed together by the one thread that runs the network.

No request waits for others to fill a batch. The next batch collects while the current one is computed.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flowers_torch.errors import ResourceError


class Batcher:
    """A worker thread with a queue; `compute` maps at most `max_batch` items to one result each, in order."""

    def __init__(self, compute: Callable[[Sequence[Any]], Sequence[Any]], max_batch: int) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._thread = ThreadPoolExecutor(1, "network")
        self.alive = True

    def submit(self, item: Any) -> "Future[Any]":
        """Queues an item; its future receives the result, or the error of its batch.

        Raises:
            ResourceError: `close` was called.
        """
        if not self.alive:
            raise ResourceError("the server is stopping", "try again later")
        future: Future[Any] = Future()
        self._waiting.append((item, future))
        self._thread.submit(self._next_batch)  # does nothing if an earlier batch includes the item
        return future

    def close(self) -> None:
        """Computes the waiting items, then ends the thread."""
        self.alive = False
        self._thread.shutdown()

    def _next_batch(self) -> None:
        taken = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
        batch = [(item, future) for item, future in taken if future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            results = self._compute([item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        # guard: H07 batch
        except Exception as error:  # any error: its requests must not wait forever
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
