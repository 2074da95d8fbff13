"""Shared by the crash tests: a small run on the real command line, in a child process that can be killed.

A child is forked from this process, which has imported everything, and calls `main` with its arguments. This
is the same code as in a new interpreter without the five seconds of imports. What a test slows down or counts
is patched in the child, after the fork.

    FLOWERS_TORCH_CRASH_SEED=7 pytest tests/crash -m slow -s

The seed draws the moments. Without it each day has its own.
"""

import contextlib
import csv
import datetime
import io
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flowers_torch import cli
from flowers_torch.files import atomic
from flowers_torch.files.tensors import safe_load
from flowers_torch.runs import recipe  # noqa: F401, imported once, before the forks
from flowers_torch.training import checkpoint
from flowers_torch.training import step as step_module

SEED = int(os.environ.get("FLOWERS_TORCH_CRASH_SEED", datetime.date.today().toordinal()))
STEPS = 10  # of the small run: two stages of one epoch, 36 images in batches of 8

CONFIG = """
arch = "happy_model"
weights = "none"
data = "{data}"
size = 32
batch_size = 8
dropout = 0.3
ema = 0.9
precision = "fp32"
device = "cpu"
threads = 1
workers = {workers}
checkpoint_minutes = 0.0  # a checkpoint after every step
[[stages]]
name = "head"
epochs = 1
train = "head"
lr = 0.01
[[stages]]
name = "finetune"
epochs = 1
train = "all"
lr = 0.003
weight_decay = 0.05
"""


class Counters:
    """Numbers in memory that a child writes and that outlive it."""

    NAMES = ("steps", "saves_started", "saves_finished", "pid0", "pid1")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(self.NAMES))

    def __getitem__(self, name: str) -> int:
        return struct.unpack_from("q", self._memory, 8 * self.NAMES.index(name))[0]

    def put(self, name: str, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * self.NAMES.index(name), value)

    def add(self, name: str) -> None:
        self.put(name, self[name] + 1)

    @property
    def inside_a_save(self) -> bool:
        return self["saves_started"] > self["saves_finished"]


class Child:
    """A forked process that runs `flowers-torch train ARGUMENTS`, on request in processes of torchrun."""

    def __init__(
        self,
        arguments: list[str],
        output: Path,
        before: Callable[[], Any] | None = None,
        processes: int = 0,
    ) -> None:
        self.output, self.counters = output, Counters()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70  # a failure of these tests
            try:
                self._become()
                if processes:
                    code = launch(processes, arguments, self.counters, before)
                else:
                    count_in_child(self.counters)
                    if before:
                        before()
                    code = cli.main(["train", *arguments])
            finally:
                os._exit(code)

    def _become(self) -> None:
        os.setpgid(0, 0)
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target in (1, 2):
            os.dup2(file, target)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def wait(self, seconds: float = 300) -> int:
        """Exit code, or minus the number of the signal that ended it. A child that hangs fails the test."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        pytest.fail(f"a child hung for {seconds} s: {self.text()[-2000:]}")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> bool:
        """Whether the condition became true while the child was alive."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return condition()
            time.sleep(0.0005)
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def launch(
    processes: int,
    arguments: list[str],
    counters: Counters,
    before: Callable[[], Any] | None,
) -> int:
    """The agent of torchrun, with forked processes instead of a new interpreter for each."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="none",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    try:
        elastic_launch(config, run_process)(arguments, counters, before)
    except ChildFailedError as error:
        print(f"torchrun: {error.get_first_failure()[1].exitcode}")
        return 1
    return 0


def run_process(arguments: list[str], counters: Counters, before: Callable[[], Any] | None) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    counters.put(f"pid{rank}", os.getpid())
    if rank == 0:
        count_in_child(counters)
    if before:
        before()
    sys.exit(cli.main(["train", *arguments]))


def count_in_child(counters: Counters) -> None:
    """Counts steps and saves, and copies each checkpoint; the last one is the end of training."""
    real_step, real_save = step_module.train_step, checkpoint.safe_save

    def step(*arguments: Any, **keywords: Any) -> Any:
        result = real_step(*arguments, **keywords)
        counters.add("steps")
        return result

    def save(tensors: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
        counters.add("saves_started")
        real_save(tensors, path, *arguments, **keywords)
        counters.add("saves_finished")
        with contextlib.suppress(OSError):  # a test removed the folder or made it read-only
            shutil.copy(path, last_checkpoint(path.parent))

    step_module.train_step, checkpoint.safe_save = step, save


def last_checkpoint(run: Path) -> Path:
    """Where the newest checkpoint of a run is copied to. The run itself deletes it at its end."""
    return Path(os.environ["FLOWERS_TORCH_CACHE"]).with_name(f"{run.parent.name}-{run.name}.last-checkpoint")


def slow_writes() -> None:
    """Slows a save down: the file is written in pieces, with a pause around every call that matters."""
    real_fsync, real_replace = os.fsync, os.replace
    real_open: Any = Path.open

    def pause() -> None:
        time.sleep(0.004)

    def fsync(descriptor: int) -> None:
        pause()
        real_fsync(descriptor)
        pause()

    def replace(*paths: Any) -> None:
        real_replace(*paths)
        pause()

    class Slow(io.BufferedWriter):
        def write(self, data: Any) -> int:
            for start in range(0, len(data), len(data) // 8 + 1):
                super().write(data[start : start + len(data) // 8 + 1])
                self.flush()
                pause()
            return len(data)

    def open_new(path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        return Slow(io.FileIO(path, "x")) if mode == "xb" else real_open(path, mode, *arguments, **keywords)

    atomic.os.fsync, atomic.os.replace, Path.open = fsync, replace, open_new


def global_step(folder: Path) -> int:
    """Steps that were done at the newest checkpoint."""
    state = checkpoint.read_newest_checkpoint(folder).state
    per_epoch = STEPS // 2
    return (state.stage + state.epoch) * per_epoch + state.step


def outcome(folder: Path) -> dict[str, Any]:
    """What interruptions must not change: weights, optimizer, average, random state, history, test."""
    tensors, metadata = safe_load(last_checkpoint(folder))
    best, _ = safe_load(folder / "model.safetensors")
    state = metadata["state"]
    with (folder / "history.csv").open() as file:
        history = [untimed(row) for row in csv.DictReader(file)]
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "best weights": {name: digest(value) for name, value in best.items()},
        "last checkpoint": {name: digest(value) for name, value in tensors.items()},
        "best row": untimed(state["best"]),
        "history": history,
        "metrics": {**metrics, "best_epoch": untimed(metrics["best_epoch"])},
        "predictions": (folder / "predictions.csv").read_text(),
    }


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}


def digest(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the differences, for the message of a failure."""
    return [
        f"{part}/{name}" if isinstance(one[part], dict) else part
        for part in one
        if one[part] != other[part]
        for name in (one[part] if isinstance(one[part], dict) else [""])
        if not isinstance(one[part], dict) or one[part].get(name) != other[part].get(name)
    ]


class SmallRun:
    """The small run: how to start and resume it, and its expected result."""

    steps = STEPS
    slow_writes = staticmethod(slow_writes)
    global_step, outcome = staticmethod(global_step), staticmethod(outcome)

    def __init__(self, root: Path, workers: int = 0) -> None:
        self.root, self.workers, self.number = root, workers, 0
        draw = np.random.default_rng(0)
        for name, color in (("blue", (60, 70, 180)), ("green", (60, 170, 60)), ("red", (190, 60, 50))):
            (root / "photos" / name).mkdir(parents=True)
            for number in range(20):
                pixels = np.clip(np.array(color) + draw.normal(0, 25, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
        (root / "small.toml").write_text(CONFIG.format(data=root / "photos", workers=workers))
        child, folder = self.start()
        assert child.wait() == 0, child.text()
        self.seconds = time.monotonic() - child.started
        assert child.counters["steps"] == STEPS
        self.saves = child.counters["saves_finished"]
        self.state_bytes = last_checkpoint(folder).stat().st_size
        self.expected = outcome(folder)
        again, folder = self.start()
        assert again.wait() == 0
        assert outcome(folder) == self.expected, "two uninterrupted runs differ"
        self.seconds = min(self.seconds, time.monotonic() - again.started)

    def start(
        self, before: Callable[[], Any] | None = None, folder: Path | None = None, **torchrun: int
    ) -> tuple[Child, Path]:
        """Starts the run in a new folder, or again in the given one."""
        self.number += 1
        folder = folder or self.root / f"run{self.number}"
        arguments = ["--config", str(self.root / "small.toml"), "--out", str(folder), "--overwrite"]
        return Child(arguments, self.root / f"{self.number}.output", before, **torchrun), folder

    def resume(self, folder: Path, before: Callable[[], Any] | None = None, *flags: str, **torchrun: int) -> Child:
        """Resumes a run."""
        self.number += 1
        arguments = ["--resume", str(folder), *flags]
        return Child(arguments, self.root / f"{self.number}.output", before, **torchrun)

    def finish(self, folder: Path) -> tuple[bool, Child]:
        """Runs an interrupted run to its end and checks the result; whether it had a checkpoint."""
        saved = bool(checkpoint.checkpoint_files(folder)) or (folder / "metrics.json").exists()
        with contextlib.suppress(FileNotFoundError):  # the kill may have come between the save and its copy
            shutil.copy(folder / checkpoint.RESUME_FILE, last_checkpoint(folder))
        child = self.resume(folder) if saved else self.start(folder=folder)[0]
        assert child.wait() == 0, child.text()
        found = outcome(folder)
        assert found == self.expected, differences(found, self.expected)
        left = [path.name for path in folder.iterdir() if path.name.endswith(".tmp") or "resume" in path.name]
        assert not left, left
        shutil.rmtree(folder)
        return saved, child


@pytest.fixture(scope="session", autouse=True)
def fork_safely() -> None:
    """Children are forked, and the threads of torch's pool would not survive a fork."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All children share one cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, one_cache: None) -> SmallRun:
    """The small run without workers."""
    return SmallRun(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def run_with_workers(tmp_path_factory: pytest.TempPathFactory, one_cache: None) -> SmallRun:
    """The small run with four workers."""
    return SmallRun(tmp_path_factory.mktemp("small4"), workers=4)


@pytest.fixture
def moments() -> random.Random:
    """Draws the moments of a test."""
    return random.Random(SEED)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints counts past the capture of pytest."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n  seed {SEED}: {text}", flush=True)

    return show
