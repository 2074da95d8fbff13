"""Disks that are full, read-only or gone, and the order of the calls that make a save safe."""

import contextlib
import io
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.files import atomic
from flowers_torch.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.needs("linux")]
needs_root = pytest.mark.needs("root")


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def fill_after(saves: int, disk: Path, room: int) -> Callable[[], None]:
    """Leaves `room` bytes on the disk after a number of saves."""

    def hook() -> None:
        real, left = checkpoint.safe_save, [saves]

        def save(*arguments: Any, **keywords: Any) -> None:
            real(*arguments, **keywords)
            left[0] -= 1
            if left[0] == 0:
                with (disk / "balloon").open("wb") as file:
                    file.write(bytes(max(0, shutil.disk_usage(disk).free - room)))

        checkpoint.safe_save = save

    return hook


def one_error(child: Any) -> str:
    lines = [line for line in child.text().splitlines() if line.startswith("flowers-torch: error:")]
    assert len(lines) == 1, child.text()
    assert "Traceback" not in child.text()
    return lines[0]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


@needs_root
def test_a_disk_that_fills_up(
    small_run: Any, moments: random.Random, tmp_path: Path, report: Callable[[str], None]
) -> None:
    """At 20 sizes between nothing and almost enough: exit 6, and the previous checkpoint still loads."""
    cut = 0
    for number in range(20):
        with small_disk(tmp_path / "disk", 12 * small_run.state_bytes) as disk:
            room = moments.randint(0, small_run.state_bytes - 1)
            child, folder = small_run.start(fill_after(2 + number % 6, disk, room), disk / "run")
            assert child.wait() == 6, child.text()
            line = one_error(child)
            assert ("No space left" in line and "bytes" in line) or "MB more" in line
            assert not [name for name in names(folder) if name.endswith(".tmp")]
            before = checkpoint.read_checkpoint(checkpoint.checkpoint_files(folder)[0]).state
            cut += "resume.safetensors" in line
            (disk / "balloon").unlink()
            second = small_run.resume(folder)
            assert second.wait() == 0, second.text()
            assert small_run.outcome(folder) == small_run.expected
            assert child.counters["steps"] + second.counters["steps"] <= small_run.steps + 1, before
    report(f"20 sizes of a full disk, {cut} of them in the middle of a checkpoint: exit 6, all bit-identical")


@needs_root
def test_a_disk_that_is_too_small_from_the_start(small_run: Any, tmp_path: Path) -> None:
    for share in (0.05, 0.5, 2.0):
        with small_disk(tmp_path / "disk", int(share * small_run.state_bytes)) as disk:
            child, folder = small_run.start(folder=disk / "run")
            assert child.wait() == 6 and child.counters["steps"] == 0, child.text()
            assert one_error(child)
            assert not [name for name in names(disk) if name.endswith(".tmp")]


@needs_root
def test_a_folder_that_becomes_read_only(small_run: Any) -> None:
    child, folder = small_run.start()
    assert child.wait_for(lambda: child.counters["saves_finished"] >= 3), child.text()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        # The mount is busy while a save has a file open for writing.
        remount = ["mount", "-o", "remount,bind,ro", folder]
        assert child.wait_for(lambda: subprocess.run(remount, capture_output=True).returncode == 0)
        assert child.wait() == 6, child.text()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    assert "Read-only file system" in one_error(child)
    small_run.finish(folder)


def test_a_folder_that_is_removed(small_run: Any) -> None:
    child, folder = small_run.start()
    assert child.wait_for(lambda: child.counters["saves_finished"] >= 3), child.text()
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    assert child.wait() == 6, child.text()
    assert one_error(child) and not folder.exists()
    away.rename(folder)
    small_run.finish(folder)


def test_the_order_of_calls_in_each_save(small_run: Any, tmp_path: Path, report: Callable[[str], None]) -> None:
    """In the whole run: write, fsync, rename (the old file, then the new one), fsync of the folder."""
    trace = tmp_path / "trace"

    def hook() -> None:
        real = {name: getattr(os, name) for name in ("fsync", "replace")}
        real_open: Any = Path.open

        def note(text: str) -> None:
            with trace.open("a") as file:
                file.write(f"{text}\n")

        def fsync(descriptor: int) -> None:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            note("fsync folder" if os.path.isdir(name) else f"fsync {os.stat(name).st_size}")
            real["fsync"](descriptor)

        def replace(source: Path, target: Path) -> None:
            real["replace"](source, target)
            note(f"rename {Path(source).suffix} {Path(target).name}")

        class Noting(io.BufferedWriter):
            def write(self, data: Any) -> int:
                note(f"write {len(data)}")
                return super().write(data)

        def open_new(path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if mode == "xb":
                return Noting(io.FileIO(path, "x"))
            return real_open(path, mode, *arguments, **keywords)

        atomic.os.fsync, atomic.os.replace, Path.open = fsync, replace, open_new

    child, _ = small_run.start(hook)
    assert child.wait() == 0, child.text()
    calls = trace.read_text().splitlines()
    saves = 0
    for place, call in enumerate(calls):
        if call != "rename .tmp resume.safetensors":
            continue
        saves += 1
        first = place - 1
        if saves > 1:
            assert calls[first] == "rename .safetensors resume.previous.safetensors"
            first -= 1
        written = calls[first - 1].removeprefix("write ")
        assert int(written) > 10_000 and calls[first] == f"fsync {written}"
        assert calls[place + 1] == "fsync folder"
    report(f"the order of calls is right at each of {saves} saves of a checkpoint")
    assert saves >= small_run.steps
