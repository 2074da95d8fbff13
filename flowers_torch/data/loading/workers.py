"""Supervision of the worker processes that read images: one that dies or hangs ends the run with a reason."""

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
# Polls without progress by any worker, while training waits for a batch, after which the workers count as
# hanging. Polls are counted rather than seconds, because a clock also runs while the whole run is suspended.
STALL_POLLS = 8
START_POLLS = 60  # the same before the first image: some systems import everything again in each worker


class Heartbeat:
    """Which image each worker began last, and how many in total, in memory that workers and parent share.

    Args:
        workers: Number of workers.
    """

    def __init__(self, workers: int) -> None:
        # The standard library's shared memory, because torch's needs /dev/shm, which may be too small.
        self.positions = multiprocessing.Array("q", [-1] * workers, lock=False)
        self.counts = multiprocessing.Array("q", workers, lock=False)

    def update(self, position: int) -> None:
        """Notes the image that this worker begins to read."""
        if info := get_worker_info():
            self.positions[info.id] = position
            self.counts[info.id] += 1

    def names(self, paths: Sequence[Path]) -> str:
        """The images that workers began last."""
        begun = [printable(paths[position], 120) for position in self.positions if position >= 0]
        return ", ".join(begun[:4]) or "none yet"


class WatchedLoader(DataLoader[Any]):
    """A DataLoader of `TransformedImages` that turns the death of a worker into an error with a fix.

    Its iterator raises:
        ResourceError: a worker was killed, hangs, or found no shared memory.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._watched(super().__iter__())

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        dataset: Any = self.dataset
        begun, polls = 0, 0  # images by all workers, and polls since that number grew
        watch = _Watch(getattr(batches, "_workers", ()), dataset.heartbeat)
        while True:
            try:
                with watch:
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                names = dataset.heartbeat.names(dataset.paths) if dataset.heartbeat else ""
                if watch.polls_of_hanging:
                    _end_workers(batches)
                    raise _hanging(watch.polls_of_hanging, names) from None
                if "timed out after" not in str(error):  # guard: R14
                    _end_workers(batches)
                    if (explained := _explained(error, names)) is error:
                        raise
                    raise explained from error
                now = sum(dataset.heartbeat.counts)
                begun, polls = now, polls + 1 if now == begun else 0
                if polls >= (STALL_POLLS if begun else START_POLLS):
                    _end_workers(batches)
                    raise _hanging(polls, names) from None
            else:
                yield batch
                polls = 0


class _Watch:
    """Kills workers that hang while one of them hands over a batch, because torch would wait forever.

    While the loader waits for a batch, a thread checks whether workers begin new images. It checks as often
    as the loader polls and waits twice as long.
    """

    def __init__(self, workers: Sequence[Any], heartbeat: Heartbeat | None) -> None:
        self.workers, self.heartbeat = workers, heartbeat
        self.polls_of_hanging = 0  # above 0 once it has killed the workers

    def __enter__(self) -> None:
        self.done = threading.Event()
        if self.heartbeat and self.workers:
            threading.Thread(target=self._watch, args=(self.heartbeat, self.done), daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.done.set()

    def _watch(self, heartbeat: Heartbeat, done: threading.Event) -> None:
        begun, polls = sum(heartbeat.counts), 0
        while not done.wait(POLL_SECONDS):
            now = sum(heartbeat.counts)
            begun, polls = now, polls + 1 if now == begun else 0
            if polls >= 2 * (STALL_POLLS if begun else START_POLLS):
                self.polls_of_hanging = polls
                for process in self.workers:
                    process.kill()
                return


def _hanging(polls: int, names: str) -> ResourceError:
    return ResourceError(
        f"the workers have read no photo for {polls * POLL_SECONDS:g} s; the last ones they began: {names}",
        "check these photos and their disk, or read without workers: --workers 0",
    )


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Explains the death of a worker, which torch's signal handler raises in whatever runs at that moment."""
    try:
        yield
    except RuntimeError as error:
        if (explained := _explained(error, "")) is error:
            raise
        raise explained from error


def _end_workers(batches: Any) -> None:
    """Kills the remaining workers: torch would wait for those that hang and report each of them again."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    for process in getattr(batches, "_workers", ()):
        process.kill()
        process.join()
    if in_main:
        signal.signal(signal.SIGCHLD, handler)


def _explained(error: Exception, names: str) -> Exception:
    """Our error for torch's errors about workers; any other error unchanged."""
    text = str(error)
    lacks_memory = (
        "out of shared memory",
        "unable to allocate shared memory",
        "unable to write to file </torch",
    )
    if any(sign in text for sign in lacks_memory):  # guard: R13
        return ResourceError(
            "shared memory (/dev/shm) is too small for the workers",
            "use --workers 0, or a larger /dev/shm (docker run --shm-size=2g)",
        )
    if text.startswith("DataLoader worker"):  # guard: R12
        began = f"; the workers began with {names}" if names else ""
        return ResourceError(
            f"a process that reads photos died{began}",
            "free memory, or read without workers: --workers 0",
        )
    return error
