"""Supervision of the worker processes that read images: one that dies or hangs ends the run with a reason."""

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch.utils.data import DataLoader, get_worker_info

from flowers_torch.errors import ResourceError, printable
from flowers_torch.files.system import ignored_child_signals

# Polls without progress by any worker, while training waits for a batch, after which the workers count as
# hanging. Polls are counted rather than seconds, because a clock also runs while the whole run is suspended.
POLL_SECONDS = 1.0
STALL_POLLS = 8
START_POLLS = 60  # the same before the first image: some systems import everything again in each worker


class Heartbeat:
    """Which image each worker began last, and how many in total, in memory that workers and parent share."""

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
        batches: Any = super().__iter__()
        dataset: Any = self.dataset
        return _watched(batches, dataset.heartbeat, dataset.paths) if dataset.heartbeat else batches


def _watched(batches: Any, heartbeat: Heartbeat, paths: Sequence[Path]) -> Iterator[Any]:
    while True:
        stalled: list[float] = []
        done = threading.Event()
        watch = (batches._workers, heartbeat, done, stalled)
        threading.Thread(target=_kill_hanging, args=watch, daemon=True).start()
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            names = heartbeat.names(paths)
            # The end of the connection on which a worker hands over a batch.
            died = isinstance(error, EOFError | ConnectionError) or not all(p.is_alive() for p in batches._workers)
            _end_workers(batches._workers)
            if stalled:
                raise ResourceError(
                    f"the workers have read no photo for {stalled[0]:g} s; the last ones they began: {names}",
                    "check these photos and their disk, or read without workers: --workers 0",
                ) from None
            _raise_explained(error, f"; the workers began with {names}", died)
        finally:
            done.set()
        yield batch


def _kill_hanging(workers: Sequence[Any], heartbeat: Heartbeat, done: threading.Event, stalled: list[float]) -> None:
    """Kills workers that begin no new image. Torch notices a death, but waits forever for one that hangs."""
    begun, polls = sum(heartbeat.counts), 0
    while not done.wait(POLL_SECONDS):
        now = sum(heartbeat.counts)
        begun, polls = now, polls + 1 if now == begun else 0
        if polls >= (STALL_POLLS if begun else START_POLLS):  # guard: R14
            stalled.append(polls * POLL_SECONDS)
            for process in workers:
                process.kill()
            return


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Explains the death of a worker, which torch's signal handler raises in whatever runs at that moment."""
    try:
        yield
    except RuntimeError as error:
        _raise_explained(error)


def _end_workers(workers: Sequence[Any]) -> None:
    """Kills the remaining workers: torch would wait for those that hang and report each of them again."""
    in_main = threading.current_thread() is threading.main_thread()
    with ignored_child_signals() if in_main else contextlib.nullcontext():
        for process in workers:
            process.kill()
            process.join()


def _raise_explained(error: Exception, began: str = "", died: bool = False) -> NoReturn:
    """Raises our error for torch's errors about workers; any other error unchanged."""
    text = str(error)
    lacks_memory = ("out of shared memory", "unable to allocate shared memory", "unable to write to file </torch")
    if any(sign in text for sign in lacks_memory):  # guard: R13
        what = "shared memory (/dev/shm) is too small for the workers"
        raise ResourceError(what, "use --workers 0, or a larger /dev/shm (docker run --shm-size=2g)") from error
    if died or text.startswith("DataLoader worker"):  # guard: R12
        what = f"a process that reads photos died{began}"
        raise ResourceError(what, "free memory, or read without workers: --workers 0") from error
    raise error
