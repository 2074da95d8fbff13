"""What ends a run before its last epoch: a signal or a deadline, checked between two batches."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flowers_torch.training.distributed import Distributed


class StopTraining(Exception):
    """Raised by a callback to end training after this epoch; the best weights so far are tested and saved."""


class StopRequest:
    """Whether this process was asked to stop, or has reached its deadline.

    Several processes agree on both, in every `interval`th batch: to agree, each host waits for the slowest one.
    """

    def __init__(self, seconds: float = math.inf, interval: int = 1) -> None:
        self.number = 0  # of the signal that came; 0 for none
        self.deadline = time.monotonic() + seconds
        self.interval, self.batches = interval, 0
        self.is_over = False  # whether the deadline has passed, as agreed

    @property
    def signal_name(self) -> str:
        """Name of the signal that came, empty for none."""
        return signal.Signals(self.number).name if self.number else ""

    def agreed(self, distributed: Distributed) -> bool:
        """Whether a signal came to any process. Every process has to call this after the same batch.

        A signal that arrives during the reduction counts at the next call, so that all leave together.
        """
        self.batches += 1
        if not self._is_due(distributed):
            return False
        number = int(distributed.all_reduce_max(self.number))
        self.number = number or self.number
        return number > 0

    def time_is_up(self, distributed: Distributed) -> bool:
        """Whether the deadline has passed in any process; called by all of them, after `agreed`."""
        if self.deadline < math.inf and not self.is_over and self._is_due(distributed):
            self.is_over = distributed.all_reduce_max(time.monotonic() >= self.deadline) > 0
        return self.is_over

    def _is_due(self, distributed: Distributed) -> bool:
        return distributed.size == 1 or self.batches % self.interval == 0


@contextmanager
def stop_request(seconds: float = math.inf, patient: bool = False, interval: int = 1) -> Iterator[StopRequest]:
    """Records the first SIGINT or SIGTERM; a second one acts immediately, as it would have before.

    The previous handlers are restored at the end. Outside the main thread Python cannot set handlers, so no
    signal is recorded.

    Args:
        patient: Ignore a second signal: torchrun forwards what a terminal has already sent to its processes.
        interval: Batches between two agreements of several processes.
    """
    request = StopRequest(seconds, interval)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def record(number: int, frame: FrameType | None) -> None:
        request.number = number  # guard: R01
        if not patient:  # guard: R02
            restore()

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    former = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        restore()  # guard: R04
