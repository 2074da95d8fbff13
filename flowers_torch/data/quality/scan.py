"""Inspection of all images of a dataset in worker processes that may crash, with a cache of the results."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.spread import Spread, alone
from flowers_torch.data.tar_members import split_path
from flowers_torch.errors import ResourceError, printable
from flowers_torch.files.cache import cache_folder, recall, remember
from flowers_torch.files.system import child_environment, processes_here, usable_cores

CACHE_FORMAT = 6
SECONDS_TO_START = 120.0
SECONDS_PER_IMAGE = 20.0  # an image that takes longer to decode is unreadable

BLOCK = 10_000  # images that are inspected, and cached in a file, together

Callback = Callable[[int], None] | None
Stamp = tuple[int, ...]


def inspect_images(
    dataset: ImageDataset,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Callback = None,
    spread: Spread = alone,
) -> list[Inspection]:
    """Inspects all images. Files whose path, size and times are in the cache are not read.

    The images are inspected and cached in blocks, so that an interrupted scan of a large set loses one block.

    Args:
        workers: Processes that decode; one for each available core if None.
        progress: Called with the number of images done.
        spread: Computes a function of a list in several processes; `Distributed.spread`.
    """
    root = hashlib.sha256(os.fsencode(dataset.root.resolve())).hexdigest()[:16]
    folder = Path(cache or cache_folder()) / "inspections"
    same: dict[Stamp, Stamp] = {}  # the images of a tar shard share one
    stamps = [same.setdefault(stamp, stamp) for stamp in (_stamp(dataset.root / path) for path in dataset.paths)]
    found = _recall(folder, root, dataset.paths, stamps)
    work, changed = functools.partial(_inspect_all, workers=workers), False
    done = sum(inspection is not None for inspection in found)
    starts = range(0, len(found), BLOCK)
    for number, start in enumerate(starts):
        block = range(start, min(start + BLOCK, len(found)))
        if todo := [index for index in block if found[index] is None]:
            paths, call = [dataset.root / dataset.paths[index] for index in todo], work
            if spread is alone:
                call = functools.partial(work, progress=_shifted(progress, done))
            for index, inspection in zip(todo, spread(call, paths), strict=True):
                found[index] = inspection
            changed, done = True, done + len(todo)
        if changed:  # later blocks may have changed places
            content = {
                dataset.paths[i]: (stamps[i], _as_dict(inspection))
                for i, inspection in zip(block, found[start : block.stop], strict=True)
                if stamps[i] and inspection and not inspection.fatal
            }
            remember(_file(folder, root, number), {"format": CACHE_FORMAT, "images": content})
    if changed:
        with contextlib.suppress(OSError):
            _file(folder, root, len(starts)).unlink(missing_ok=True)  # of a set that was larger
    return [inspection for inspection in found if inspection is not None]


def _recall(folder: Path, root: str, paths: Sequence[str], stamps: list[Stamp]) -> list[Inspection | None]:
    """The cached inspection of each image that is as it was, block by block."""
    found: list[Inspection | None] = [None] * len(paths)
    place, number = {path: index for index, path in enumerate(paths)}, -1
    while (file := _file(folder, root, number := number + 1)).exists():
        content = recall(file, {"format": {CACHE_FORMAT}, "images": {}}) or {"images": {}}
        for path, (stamp, values) in content["images"].items():
            index = place.get(path)
            if index is not None and stamps[index] and stamps[index] == tuple(stamp):
                found[index] = Inspection.from_dict(values)
    return found


def _file(folder: Path, root: str, number: int) -> Path:
    return folder / (f"{root}.{number}.json" if number else f"{root}.json")


def _as_dict(inspection: Inspection) -> dict[str, Any]:
    """The fields; `asdict` would copy each value."""
    return {field.name: getattr(inspection, field.name) for field in dataclasses.fields(Inspection)}


def _shifted(progress: Callback, before: int) -> Callback:
    return None if progress is None else lambda done: progress(before + done)


def _inspect_all(paths: Sequence[Path], workers: int | None = None, progress: Callback = None) -> list[Inspection]:
    workers = min(workers or max(1, usable_cores() // processes_here()), len(paths))
    idle: SimpleQueue[Worker] = SimpleQueue()

    def inspect(path: Path) -> Inspection:
        worker = idle.get()
        try:
            # A second try with a new process: lack of memory or a sleeping machine can end the first.
            if found := worker.inspect(path, SECONDS_PER_IMAGE) or worker.inspect(path, SECONDS_PER_IMAGE):
                return found
            reason = f"crashes the image decoder, or takes longer than {SECONDS_PER_IMAGE:g} s to decode"
            return Inspection(error=f"{printable(path)} {reason}; fix: remove it", fatal=True)
        finally:
            idle.put(worker)

    pool = [Worker() for _ in range(workers)]
    for worker in pool:
        idle.put(worker)
    results = []
    try:
        with ThreadPoolExecutor(workers) as threads:
            for done, found in enumerate(threads.map(inspect, paths), 1):
                if progress is not None:
                    progress(done)
                results.append(found)
        return results
    finally:
        for worker in pool:
            worker.stop()


class Worker:
    """An `inspection` process that is restarted after each image that ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: SimpleQueue[bytes] = SimpleQueue()  # what the process printed
        self.reader: threading.Thread | None = None

    def inspect(self, path: Path, seconds: float) -> Inspection | None:
        """The inspection, or None if the process crashed or took too long and was stopped."""
        process = self.process or self._start()
        assert process.stdin  # noqa: S101 - a pipe
        try:
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            process.stdin.flush()
            return Inspection.from_dict(json.loads(self._next_line(seconds)))
        except (OSError, EOFError):  # guard: D34 crash
            self.stop()
            return None

    def stop(self) -> None:
        if self.process and self.reader:
            self.process.kill()
            self.reader.join()
            with contextlib.suppress(OSError), self.process:  # what it did not read cannot be written any more
                self.process = None

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "flowers_torch.data.quality.inspection"]
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL  # quiet: libtiff prints warnings
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, env=child_environment())
        self.lines = SimpleQueue()
        self.reader = threading.Thread(target=_forward, args=(self.process.stdout, self.lines), daemon=True)
        self.reader.start()
        try:
            self._next_line(SECONDS_TO_START)
        except (EOFError, TimeoutError) as error:
            self.stop()
            what, fix = "the processes that decode photos do not start", "free memory, or use fewer with --workers"
            raise ResourceError(what, fix) from error
        return self.process

    def _next_line(self, seconds: float) -> bytes:
        """The next line; EOFError if there is none, TimeoutError after `seconds`."""
        try:
            line = self.lines.get(timeout=seconds)
        except Empty:  # guard: D34 stall
            raise TimeoutError from None
        if not line.endswith(b"\n"):
            raise EOFError
        return line


def _forward(pipe: Any, lines: "SimpleQueue[bytes]") -> None:
    """Passes on lines, in a thread: Windows cannot wait for a pipe for a limited time."""
    for line in pipe:
        lines.put(line)
    lines.put(b"")


def _stamp(path: Path) -> Stamp:
    """Size and times; empty for a file that cannot be accessed. No program can choose the time of the last change."""
    inside = split_path(path)
    try:
        status = (inside[0] if inside else path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)  # guard: S11 same time
