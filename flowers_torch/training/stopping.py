"""What ends a run before its last epoch: a signal, or the clock. Looked at between two batches."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop, or has used its time.

    Attributes:
        number: Of the signal that came, 0 for none.
        deadline: On the monotonic clock, in seconds.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.number = 0
        self.deadline = time.monotonic() + seconds

    @property
    def signal_name(self) -> str:
        """Name of the signal that came, empty for none."""
        return signal.Signals(self.number).name if self.number else ""

    def time_is_up(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline


@contextmanager
def stop_request(seconds: float = math.inf, patient: bool = False) -> Iterator[StopRequest]:
    """Notes the first SIGINT or SIGTERM inside; a second one acts at once, as it did before.

    The former handlers are back afterwards. Outside the main thread, where Python cannot set handlers, no
    signal is noted.

    Args:
        seconds: Until the deadline.
        patient: Ignore a second one: torchrun passes on to its processes what a terminal sent them already.
    """
    request = StopRequest(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number  # guard: R01
        if not patient:  # guard: R02
            put_back()

    def put_back() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        put_back()  # guard: R04
