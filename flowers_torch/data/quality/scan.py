"""Inspection of all images of a dataset in worker processes that may crash, with a cache of the results."""

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.tar_members import split_path
from flowers_torch.errors import ResourceError, printable
from flowers_torch.files.cache import cache_folder, recall, remember
from flowers_torch.files.system import usable_cores

CACHE_FORMAT = 6
SECONDS_TO_START = 120.0
SECONDS_PER_IMAGE = 20.0  # an image that takes longer to decode is unreadable

Callback = Callable[[int], None] | None


def inspect_images(
    dataset: ImageDataset, workers: int | None = None, cache: Path | None = None, progress: Callback = None
) -> list[Inspection]:
    """Inspects all images. Files whose path, size and times are in the cache are not read.

    There is a worker for each available core if `workers` is None. `progress` gets the number of images done.
    """
    root = hashlib.sha256(os.fsencode(dataset.root.resolve())).hexdigest()[:16]
    file = Path(cache or cache_folder()) / "inspections" / f"{root}.json"
    known = (recall(file, {"format": {CACHE_FORMAT}, "images": {}}) or {"images": {}})["images"]
    stamps = {path: _stamp(dataset.root / path) for path in dataset.paths}
    fresh = [path for path, stamp in stamps.items() if stamp and path in known and known[path][0] == stamp]
    found = {path: Inspection.from_dict(known[path][1]) for path in fresh}
    if todo := [path for path in dataset.paths if path not in found]:
        paths = [dataset.root / path for path in todo]
        found |= zip(todo, _inspect_all(paths, min(workers or usable_cores(), len(todo)), progress), strict=True)
        sound = [path for path, stamp in stamps.items() if stamp and not found[path].fatal]
        content = {path: (stamps[path], dataclasses.asdict(found[path])) for path in sound}
        remember(file, {"format": CACHE_FORMAT, "images": content})
    return [found[path] for path in dataset.paths]


def _inspect_all(paths: list[Path], workers: int, progress: Callback) -> Iterator[Inspection]:
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
    try:
        with ThreadPoolExecutor(workers) as threads:
            for done, found in enumerate(threads.map(inspect, paths), 1):
                if progress is not None:
                    progress(done)
                yield found
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
        # A child does not inherit the script's folder, where the package may have been found.
        here = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
        command = [sys.executable, "-m", "flowers_torch.data.quality.inspection"]
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL  # quiet: libtiff prints warnings
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, env=environment)
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


def _stamp(path: Path) -> list[int]:
    """Size and times; empty for a file that cannot be accessed. No program can choose the time of the last change."""
    inside = split_path(path)
    try:
        status = (inside[0] if inside else path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]  # guard: S11 same time
