"""Watching over the worker processes that read photos: one that dies or hangs ends the run with a reason."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from flowers_torch.errors import ResourceError, printable

POLL_SECONDS = 1.0
# Polls without a sign of life from any worker, while the training waits for one, after which they hang. Polls
# rather than a clock, which goes on while the whole run is suspended.
STALL_POLLS = 8
START_POLLS = 60  # the same until the first sign: some systems start workers by importing everything anew


class Heartbeat:
    """Which photo each worker began last, and how many in all, in memory that workers and parent share.

    Args:
        workers: Their number.
    """

    def __init__(self, workers: int) -> None:
        # The standard library's shared memory: torch's needs /dev/shm, whose lack is to be told of, too.
        self.positions = multiprocessing.Array("q", [-1] * workers, lock=False)
        self.counts = multiprocessing.Array("q", workers, lock=False)

    def beat(self, position: int) -> None:
        """Called in a worker when it begins with a photo."""
        if info := get_worker_info():
            self.positions[info.id] = position
            self.counts[info.id] += 1

    def names(self, paths: Sequence[Path]) -> str:
        """The photos that workers began last."""
        begun = [printable(paths[position], 120) for position in self.positions if position >= 0]
        return ", ".join(begun[:4]) or "none yet"


class WatchedLoader(DataLoader[Any]):
    """A DataLoader of a `TransformedImages` that turns what its workers die of into an error that names a way on.

    Its iterator raises:
        ResourceError: a worker was killed, hangs, or found no shared memory.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._watched(super().__iter__())

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        dataset: Any = self.dataset
        begun, polls = 0, 0  # photos by all workers, and polls since that number grew
        watch = _Watch(getattr(batches, "_workers", ()), dataset.pulse)
        while True:
            try:
                with watch:
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                names = dataset.pulse.names(dataset.paths) if dataset.pulse else ""
                if watch.polls_of_hanging:
                    _end_workers(batches)
                    raise _hanging(watch.polls_of_hanging, names) from None
                if "timed out after" not in str(error):  # guard: R14
                    _end_workers(batches)
                    if (explained := _explained(error, names)) is error:
                        raise
                    raise explained from error
                now = sum(dataset.pulse.counts)
                begun, polls = now, polls + 1 if now == begun else 0
                if polls >= (STALL_POLLS if begun else START_POLLS):
                    _end_workers(batches)
                    raise _hanging(polls, names) from None
            else:
                yield batch
                polls = 0


class _Watch:
    """Kills workers that hang while one of them is handing over a batch, for which torch waits without end.

    Entered while a batch is waited for; a thread then looks, as seldom as the loader's own polls and with
    twice their patience, whether photos are being begun.
    """

    def __init__(self, workers: Sequence[Any], pulse: Heartbeat | None) -> None:
        self.workers, self.pulse = workers, pulse
        self.polls_of_hanging = 0  # above 0 once it has killed

    def __enter__(self) -> None:
        self.over = threading.Event()
        if self.pulse and self.workers:
            threading.Thread(target=self._look, args=(self.pulse, self.over), daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.over.set()

    def _look(self, pulse: Heartbeat, over: threading.Event) -> None:
        begun, polls = sum(pulse.counts), 0
        while not over.wait(POLL_SECONDS):
            now = sum(pulse.counts)
            begun, polls = now, polls + 1 if now == begun else 0
            if polls >= 2 * (STALL_POLLS if begun else START_POLLS):
                self.polls_of_hanging = polls
                for process in self.workers:
                    process.kill()
                return


def _hanging(polls: int, names: str) -> ResourceError:
    return ResourceError(
        f"no photo came for {polls * POLL_SECONDS:g} s: the workers hang; they began {names}",
        "look at these photos and their disk, or read without workers: --workers 0",
    )


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Explains the death of a worker that torch's signal handler throws into whatever runs at that moment."""
    try:
        yield
    except RuntimeError as error:
        if (explained := _explained(error, "")) is error:
            raise
        raise explained from error


def _end_workers(batches: Any) -> None:
    """Kills what is left of the workers: torch would wait for those that hang, and tell of each once more."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    for process in getattr(batches, "_workers", ()):
        process.kill()
        process.join()
    if in_main:
        signal.signal(signal.SIGCHLD, handler)


def _explained(error: Exception, names: str) -> Exception:
    """Our error for what torch says of its workers; any other error as it is."""
    text = str(error)
    lacks_memory = (
        "out of shared memory",
        "unable to allocate shared memory",
        "unable to write to file </torch",
    )
    if any(sign in text for sign in lacks_memory):  # guard: R13
        return ResourceError(
            "shared memory (/dev/shm) is too small for the workers",
            "--workers 0, or give more of it (docker run --shm-size=2g)",
        )
    if text.startswith("DataLoader worker"):  # guard: R12
        began = f"; the workers began with {names}" if names else ""
        return ResourceError(
            f"a process that reads photos died{began}",
            "free memory, of which the system may have been short, or read without workers: --workers 0",
        )
    return error
