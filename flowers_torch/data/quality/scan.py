"""Inspects every photo of a set, in worker processes that are allowed to die, and remembers the results."""

import dataclasses
import hashlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.sources.tar_members import split_path
from flowers_torch.errors import ResourceError, printable
from flowers_torch.files.atomic import write_json
from flowers_torch.files.cache import cache_folder

CACHE_FORMAT = 3
SECONDS_TO_START = 120.0
SECONDS_PER_PHOTO = 20.0  # a photo that takes longer to decode is refused


def inspect_images(
    photos: ImageDataset,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    seconds_per_photo: float = SECONDS_PER_PHOTO,
) -> list[Inspection]:
    """Inspects all photos; those whose path, size and time of change are known from before are not read.

    Args:
        photos: The set.
        workers: Processes; the number of cores that this process may use if None.
        cache: Folder for what is remembered; `files.cache_folder()` if None.
        progress: Called with the number of photos done, from any thread.
        seconds_per_photo: After this time a worker is killed and the photo counts as unreadable.

    Returns:
        One inspection a photo, in the order of `photos.paths`.
    """
    memory = _memory_file(photos, Path(cache or cache_folder()))
    known = _recall(memory)
    stamps = [_stamp(photos.root / path) for path in photos.paths]
    found: list[Inspection | None] = []
    for path, stamp in zip(photos.paths, stamps, strict=True):
        entry = known.get(path)
        found.append(Inspection(**entry[1]) if entry and stamp and entry[0] == stamp else None)
    todo = [index for index, inspection in enumerate(found) if inspection is None]
    if todo:
        paths = [photos.root / photos.paths[index] for index in todo]
        count = min(workers or _cores(), len(todo))
        new = _inspect_all(paths, count, seconds_per_photo, progress)
        for index, inspection in zip(todo, new, strict=True):
            found[index] = inspection
        _remember(memory, photos, stamps, found)
    return [inspection for inspection in found if inspection is not None]


def _inspect_all(
    paths: list[Path], workers: int, seconds: float, progress: Callable[[int], None] | None
) -> Iterator[Inspection]:
    idle: SimpleQueue[Worker] = SimpleQueue()
    done = 0

    def inspect(path: Path) -> Inspection:
        nonlocal done
        worker = idle.get()
        try:
            # Once more with a fresh process: the first one may have fallen to a short memory or a sleeping
            # machine, and a good photo must not be blamed for that.
            return worker.inspect(path, seconds) or worker.inspect(path, seconds) or _deadly(path, seconds)
        finally:
            idle.put(worker)
            done += 1
            if progress is not None:
                progress(done)

    pool = [Worker() for _ in range(workers)]
    for worker in pool:
        idle.put(worker)
    try:
        with ThreadPoolExecutor(workers) as threads:
            yield from threads.map(inspect, paths)
    finally:
        for worker in pool:
            worker.stop()


class Worker:
    """One `inspection` process, started again after each photo that it did not survive."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def inspect(self, path: Path, seconds: float) -> Inspection | None:
        """None where the process crashed or took too long; it is gone then."""
        if self.process is None:
            self.process = self._start()
        process = self.process
        assert process.stdin and process.stdout  # noqa: S101 - both are pipes
        try:
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            process.stdin.flush()
            return Inspection(**json.loads(_read_line(process.stdout, seconds)))
        except (BrokenPipeError, EOFError, TimeoutError):  # guard: D34 crash
            self.stop()
            return None

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> "subprocess.Popen[bytes]":
        # The package may have been found through the script's folder, which a child does not inherit.
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowers_torch.data.quality.inspection"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff writes there whatever it thinks of a file
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            _read_line(self.process.stdout, SECONDS_TO_START)
        except (EOFError, TimeoutError) as error:
            self.stop()
            raise ResourceError(
                "the processes that decode photos do not start", "free memory, or use fewer with --workers"
            ) from error
        return self.process


def _deadly(path: Path, seconds: float) -> Inspection:
    why = f"crashes the image decoder, or takes longer than {seconds:g} s in it"
    return Inspection(error=f"{printable(path)} {why}; fix: remove it", deadly=True)


def _read_line(stream: Any, seconds: float) -> bytes:
    """A line from a pipe.

    Raises:
        EOFError: the other side ended.
        TimeoutError: nothing came in time.
    """
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(seconds):  # guard: D34 stall
                raise TimeoutError
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            line += chunk
    return line


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stamp(path: Path) -> list[int]:
    """Size and time of change; empty for what cannot be looked at, which is then read again."""
    inside = split_path(path)
    try:
        status = (inside[0] if inside else path).stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _memory_file(photos: ImageDataset, cache: Path) -> Path:
    where = os.fsencode(photos.root.resolve())
    return cache / "inspections" / f"{hashlib.sha256(where).hexdigest()[:16]}.json"


def _recall(memory: Path) -> dict[str, tuple[list[int], dict[str, Any]]]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        if content["format"] != CACHE_FORMAT:
            return {}
        known = {path: (stamp, values) for path, (stamp, values) in content["photos"].items()}
        for _, values in known.values():
            Inspection(**values)
        return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # absent or damaged: everything is read anew


def _remember(
    memory: Path, photos: ImageDataset, stamps: list[list[int]], found: list[Inspection | None]
) -> None:
    rows = zip(photos.paths, stamps, found, strict=True)
    content = {
        path: (stamp, dataclasses.asdict(seen))
        for path, stamp, seen in rows
        if seen and stamp and not seen.deadly
    }
    write_json(memory, {"format": CACHE_FORMAT, "photos": content})
