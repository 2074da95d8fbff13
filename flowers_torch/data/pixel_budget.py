"""A bound on the pixels that the threads of a process decode at the same time, and so on their memory."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from flowers_torch.files.system import after_fork


class _Budget:
    """First come, first served: a large image waits for those that are being decoded, and smaller ones wait for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[object] = deque()
        self.held = 0.0  # pixels

    @contextlib.contextmanager
    def hold(self, pixels: float, limit: float) -> Iterator[None]:
        ticket = object()
        with self.changed:
            self.waiting.append(ticket)
            self.changed.wait_for(lambda: self.waiting[0] is ticket and self.held + pixels <= limit)
            self.waiting.popleft()
            self.held += pixels
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.held -= pixels
                self.changed.notify_all()


_budget = _Budget()


@after_fork
def _new_budget() -> None:
    """A new process has none of the threads that hold pixels or wait."""
    global _budget
    _budget = _Budget()  # guard: S7 fork


def hold_pixels(pixels: float, limit: float) -> contextlib.AbstractContextManager[None]:
    """Waits until an image of `pixels` fits into `limit` beside those that other threads hold, and holds it inside.

    An image of more than `limit` counts as `limit`: it is decoded alone.
    """
    return _budget.hold(min(pixels, limit), limit)
