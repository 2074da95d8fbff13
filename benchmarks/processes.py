"""What the benchmarks share: programs timed from outside, a line of results, medians with their range."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

Command = tuple[list[str], dict[str, str]]  # with additions to the environment
TRAIN = str(Path(__file__).parent.parent / "train.py")

# What `train.py` prints of an epoch and of the test.
EPOCH = re.compile(r"^\s+\S+ \d+/\d+ .* val loss \S+ acc ([\d.]+)")
TEST = re.compile(r"^test\s+accuracy ([\d.]+)")
POLL_SECONDS = 0.05


def progress_of(command: Command) -> Iterator[tuple[float, dict[str, Any]]]:
    """What a program prints of its progress, with the seconds since its start.

    Programs print lines of JSON (`contestants/protocol.py`). `train.py` prints its usual lines. The last item
    has `status`, `cpu_seconds` (of the program and what it started) and two peaks of memory: `bytes`, of
    the largest of its processes with the files that it maps, and `own_bytes`, of all of them together
    without files that the system may take back at any time.
    """
    started = time.time()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | command[1] | {"BENCHMARK_STARTED": str(started)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command[0], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        own = [0]
        watch = threading.Thread(target=_watch_memory, args=(process.pid, own), daemon=True)
        watch.start()
        for line in process.stdout or ():
            seconds = time.time() - started
            if line.startswith("{"):
                yield seconds, json.loads(line)
            elif match := EPOCH.match(line):
                yield seconds, {"val_accuracy": float(match[1])}
            elif match := TEST.match(line):
                yield seconds, {"test_accuracy": float(match[1])}
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.time() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.join()
        if status:
            errors.seek(0)
            text = errors.read()[-2000:]
            print(f"  {' '.join(command[0][:4])} ... failed:\n{text}", file=sys.stderr, flush=True)
    cpu = used.ru_utime + used.ru_stime
    ended = {"status": process.returncode, "cpu_seconds": cpu, "own_bytes": own[0]}
    yield seconds, ended | {"bytes": used.ru_maxrss * 1024}


def run_training(flags: Sequence[str], cache: Path) -> dict[str, Any]:
    """A whole run of ours: seconds, memory, the epochs' (seconds, validation accuracy), test accuracy.

    Args:
        flags: Of `train.py`.
        cache: Where it keeps what it computes once; an empty folder for a first run.
    """
    result: dict[str, Any] = {"epochs": [], "test_accuracy": None}
    for seconds, row in progress_of(([sys.executable, TRAIN, *flags], {"FLOWERS_TORCH_CACHE": str(cache)})):
        if "val_accuracy" in row:
            result["epochs"].append((seconds, row["val_accuracy"]))
        result |= {key: value for key, value in row.items() if key != "val_accuracy"}
    return result | {"seconds": seconds}


def _watch_memory(pid: int, peak: list[int]) -> None:
    """Keeps the highest sum of memory that belongs to a process and its children alone, while it runs."""
    while Path(f"/proc/{pid}").exists():
        held = [own_bytes(member) for member in family(pid)]
        if not any(held):  # a zombie holds nothing
            return
        peak[0] = max(peak[0], sum(held))
        time.sleep(POLL_SECONDS)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    members = [pid]
    for member in members:
        for path in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += map(int, path.read_text().split())
            except OSError:  # it has just ended
                continue
    return members


def own_bytes(pid: int) -> int:
    """Anonymous and shared memory; pages of files do not count."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+)", text, re.MULTILINE)))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range, as a table has them."""
    low, middle, high = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f}"


def info(path: Path, **values: Any) -> None:
    """Appends a line of results, with what they were measured on."""
    where = {
        "benchmark": Path(sys.argv[0]).stem,
        "argv": sys.argv[1:],
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(where | values) + "\n")


def processor() -> str:
    """Name of the processor."""
    names = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.processor()
