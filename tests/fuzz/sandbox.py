"""Runs one action in a forked child, in a folder of its own, and tells what it did to the machine."""

import ctypes
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowers_torch.errors import FlowersError

SECONDS = 10.0  # of processor time, beyond which an action hangs; a machine that is busy does not count
WAITING = 60.0  # seconds in all, beyond which it hangs too
BUILD_FAILED = 70  # exit code: the case itself is wrong
MEMORY = 500 << 20  # bytes beyond those at its start
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")  # what a terminal would act on
OURS = re.compile(rb"flowers-torch: [^\n]*\n?")


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """What an action did; the first fault of `faults` counts."""

    code: int  # exit code; minus the signal that killed it
    seconds: float  # of processor time
    peak: int  # bytes of memory beyond those at its start; 0 if it was killed
    output: bytes  # of stdout and stderr, also what native libraries write there
    changed: tuple[str, ...]  # files outside of the folders that it may write to

    def faults(self) -> list[str]:
        """The promises that it broke."""
        executed = any("executed" in name for name in self.changed)
        stopped = self.code in (-signal.SIGPROF, -signal.SIGALRM)
        found = {
            "code executed": executed,
            "file outside": bool(self.changed) and not executed,
            "crash": self.code < 0 and not stopped,
            "hang": self.seconds > SECONDS or stopped,
            "fuzzer": self.code == BUILD_FAILED,
            "memory": self.peak > MEMORY,
            "exit 1": self.code == 1,
            "terminal": bool(CONTROL.search(self.output)),
            "noise": self.code in (0, 2, 3, 4, 6) and bool(OURS.sub(b"", self.output.partition(b"\n--stderr--\n")[2])),
        }
        return [name for name, broken in found.items() if broken]


class Box:
    """A folder with `work`, `cache`, `home` and `tmp` that an action may write to; nothing else may change.

    A payload that runs writes the file `executed` beside them.
    """

    WRITABLE = ("work", "cache", "home", "tmp")

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (*self.WRITABLE, "outside"):
            (root / name).mkdir(parents=True)
        self.work, self.outside, self.executed = root / "work", root / "outside", root / "executed"
        (self.outside / "precious").write_text("as it was")

    def clear(self) -> None:
        """Empties the writable folders, except what was prepared under `work/fixed`."""
        for name in self.WRITABLE:
            for entry in (self.root / name).iterdir():
                if entry.name != "fixed":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def changes(self) -> tuple[str, ...]:
        """What is new or different outside of the writable folders; puts it right."""
        found = [path for path in self.root.iterdir() if path.name not in (*self.WRITABLE, "outside")]
        found += [path for path in self.outside.rglob("*") if path.name != "precious"]
        names = [path.name for path in found]
        if (self.outside / "precious").read_text() != "as it was":
            names.append("precious")
        for path in found:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        (self.outside / "precious").write_text("as it was")
        return tuple(names)


def run(build: Callable[[], Callable[[], Any]], box: Box) -> CaseResult:
    """Builds a case and runs its action in a child. A `FlowersError` ends it with its exit code, others with 1."""
    report = box.root / "home" / "report"
    streams = box.root / "home" / "stdout", box.root / "home" / "stderr"
    child = os.fork()
    if child == 0:
        _child(build, box, report, streams)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    peak, seconds = json.loads(report.read_text()) if report.exists() else (0, 0.0)
    output = b"\n--stderr--\n".join(path.read_bytes() if path.exists() else b"" for path in streams)
    return CaseResult(code, seconds, peak, output, box.changes())


def _child(build: Callable[[], Callable[[], Any]], box: Box, report: Path, streams: tuple[Path, Path]) -> None:
    code = 1
    try:
        os.chdir(box.work)
        os.environ |= {"FLOWERS_TORCH_CACHE": str(box.root / "cache"), "HOME": str(box.root / "home")}
        os.environ["TMPDIR"] = str(box.root / "tmp")
        for number, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 30, 4 << 30))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = BUILD_FAILED
            action = build()
            code = 1
        trim_memory()  # else what the parent freed hides what the action takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is used now
        before, started = _status("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 1.2 * SECONDS)  # their default actions end the process
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        code = _exit_code(action)
        sys.stdout.flush()
        sys.stderr.flush()
        report.write_text(json.dumps([_status("VmHWM") - before, time.process_time() - started]))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def trim_memory() -> None:
    """Gives freed memory back to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def _exit_code(action: Callable[[], Any]) -> int:
    try:
        result = action()
        return result if isinstance(result, int) else 0
    except FlowersError as error:
        print(f"flowers-torch: error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
        print(traceback.format_exc()[-3000:], file=sys.stderr)
        return 1


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])  # type: ignore[index]
