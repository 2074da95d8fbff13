"""What the crash tests share: a toy run on the real command line in a child process, killed at will.

A child is forked from this process, where everything is imported already, and calls the command's own `main`
with its arguments: the same code as a fresh interpreter, without the five seconds of imports. What a test
wants to widen or count inside the child is patched there, after the fork.

    FLOWERS_TORCH_CRASH_SEED=7 pytest tests/crash -m slow -s

The seed picks the moments; without it each day has its own, so that nothing is tuned to one.
"""

import contextlib
import csv
import datetime
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

from flowers_torch import cli, files, results  # noqa: F401, results: loaded once, before the forks
from flowers_torch.files.tensors import safe_load
from flowers_torch.training import checkpoint
from flowers_torch.training import step as engine

SEED = int(os.environ.get("FLOWERS_TORCH_CRASH_SEED", datetime.date.today().toordinal()))
STEPS = 10  # of the toy run: two stages of an epoch, 36 photos in batches of 8

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
checkpoint_minutes = 0.0  # a save after every step
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
    """Numbers in memory that a child goes on writing and that outlive it."""

    NAMES = ("steps", "saves_begun", "saves_ended", "pid0", "pid1")

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
        return self["saves_begun"] > self["saves_ended"]


class Child:
    """A forked process that runs `flowers-torch train ARGUMENTS`, in torchrun's processes where asked."""

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
            code = 70  # of this harness failing
            try:
                self._become()
                if processes:
                    code = launch(processes, arguments, self.counters, before)
                else:
                    count_in_child(self.counters)
                    if before:
                        before()
                    code = cli.guarded("train", arguments)
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
        """Exit code, or minus the number of the signal that ended it; a child that hangs fails the test."""
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
        """Whether the condition came true while the child lived."""
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
    """torchrun's own agent, with processes that it forks instead of starting an interpreter for each."""
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
        elastic_launch(config, one_of_several)(arguments, counters, before)
    except ChildFailedError as error:
        print(f"torchrun: {error.get_first_failure()[1].exitcode}")
        return 1
    return 0


def one_of_several(arguments: list[str], counters: Counters, before: Callable[[], Any] | None) -> None:
    """What the agent runs as each process."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    counters.put(f"pid{rank}", os.getpid())
    if rank == 0:
        count_in_child(counters)
    if before:
        before()
    sys.exit(cli.guarded("train", arguments))


def count_in_child(counters: Counters) -> None:
    """Counts steps and saves; keeps a copy of each saved state, the last of which is the end of training."""
    real_step, real_save = engine.train_step, checkpoint.safe_save

    def step(*arguments: Any, **keywords: Any) -> Any:
        result = real_step(*arguments, **keywords)
        counters.add("steps")
        return result

    def save(tensors: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
        counters.add("saves_begun")
        real_save(tensors, path, *arguments, **keywords)
        counters.add("saves_ended")
        with contextlib.suppress(OSError):  # vanished or read-only: a test's doing
            shutil.copy(path, last_state(path.parent))

    engine.train_step, checkpoint.safe_save = step, save


def last_state(run: Path) -> Path:
    """Where the harness keeps a run's newest saved state, which the run itself deletes at its end."""
    return Path(os.environ["FLOWERS_TORCH_CACHE"]).with_name(f"{run.parent.name}-{run.name}.last-state")


def slow_writes() -> None:
    """Widens a save: the file comes in pieces, and there is a pause around every call that matters."""
    real_fsync, real_replace, real_temporary = os.fsync, os.replace, files.tempfile.NamedTemporaryFile

    def pause() -> None:
        time.sleep(0.004)

    def fsync(descriptor: int) -> None:
        pause()
        real_fsync(descriptor)
        pause()

    def replace(*paths: Any) -> None:
        real_replace(*paths)
        pause()

    def temporary(*arguments: Any, **keywords: Any) -> Any:
        file = real_temporary(*arguments, **keywords)
        real_write = file.write

        def write(data: bytes) -> None:
            for start in range(0, len(data), len(data) // 6 + 1):
                real_write(data[start : start + len(data) // 6 + 1])
                file.flush()
                pause()

        file.write = write
        return file

    files.os.fsync, files.os.replace, files.tempfile.NamedTemporaryFile = fsync, replace, temporary


def global_step(folder: Path) -> int:
    """Steps that the newest saved state has behind it."""
    progress = checkpoint.read_newest_checkpoint(folder).progress
    per_epoch = STEPS // 2
    return (progress.stage + progress.epoch) * per_epoch + progress.step


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on interruptions: final weights, optimiser, average, random state, numbers."""
    tensors, metadata = safe_load(last_state(folder))
    best, _ = safe_load(folder / "model.safetensors")
    progress = metadata["progress"]
    with (folder / "history.csv").open() as file:
        history = [untimed(row) for row in csv.DictReader(file)]
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "best weights": {name: digest(value) for name, value in best.items()},
        "last state": {name: digest(value) for name, value in tensors.items()},
        "best row": untimed(progress["best"]),
        "history": history,
        "metrics": {**metrics, "best_epoch": untimed(metrics["best_epoch"])},
        "predictions": (folder / "predictions.csv").read_text(),
    }


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}


def digest(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs, for a failure's message."""
    return [
        f"{part}/{name}" if isinstance(one[part], dict) else part
        for part in one
        if one[part] != other[part]
        for name in (one[part] if isinstance(one[part], dict) else [""])
        if not isinstance(one[part], dict) or one[part].get(name) != other[part].get(name)
    ]


class Toy:
    """The toy run: how to start and resume it, and what it must come to."""

    steps = STEPS
    slow_writes = staticmethod(slow_writes)
    global_step, outcome = staticmethod(global_step), staticmethod(outcome)

    def __init__(self, root: Path, workers: int = 0) -> None:
        self.root, self.workers, self.number = root, workers, 0
        draw = np.random.default_rng(0)
        for name, colour in (("blue", (60, 70, 180)), ("green", (60, 170, 60)), ("red", (190, 60, 50))):
            (root / "photos" / name).mkdir(parents=True)
            for number in range(20):
                pixels = np.clip(np.array(colour) + draw.normal(0, 25, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
        (root / "toy.toml").write_text(CONFIG.format(data=root / "photos", workers=workers))
        child, folder = self.start()
        assert child.wait() == 0, child.text()
        self.seconds = time.monotonic() - child.started
        assert child.counters["steps"] == STEPS
        self.saves = child.counters["saves_ended"]
        self.state_bytes = last_state(folder).stat().st_size
        self.expected = outcome(folder)
        again, folder = self.start()
        assert again.wait() == 0
        assert outcome(folder) == self.expected, "two uninterrupted runs differ"
        self.seconds = min(self.seconds, time.monotonic() - again.started)

    def start(
        self, before: Callable[[], Any] | None = None, folder: Path | None = None, **torchrun: int
    ) -> tuple[Child, Path]:
        """Starts the run in a fresh folder, or anew in the given one."""
        self.number += 1
        folder = folder or self.root / f"run{self.number}"
        arguments = ["--config", str(self.root / "toy.toml"), "--out", str(folder), "--overwrite"]
        return Child(arguments, self.root / f"{self.number}.output", before, **torchrun), folder

    def resume(
        self, folder: Path, before: Callable[[], Any] | None = None, *flags: str, **torchrun: int
    ) -> Child:
        """Goes on with a run."""
        self.number += 1
        arguments = ["--resume", str(folder), *flags]
        return Child(arguments, self.root / f"{self.number}.output", before, **torchrun)

    def finish(self, folder: Path) -> tuple[bool, Child]:
        """Brings an interrupted run to its end; whether it had saved anything to go on from."""
        saved = bool(checkpoint.checkpoint_files(folder)) or (folder / "metrics.json").exists()
        child = self.resume(folder) if saved else self.start(folder=folder)[0]
        assert child.wait() == 0, child.text()
        got = outcome(folder)
        assert got == self.expected, differences(got, self.expected)
        left = [path.name for path in folder.iterdir() if path.name.endswith(".tmp") or "resume" in path.name]
        assert not left, left
        shutil.rmtree(folder)
        return saved, child


@pytest.fixture(scope="session", autouse=True)
def fork_safely() -> None:
    """Children are forked, which the threads of torch's pool would not survive."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of the photos is remembered from child to child."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, one_cache: None) -> Toy:
    """The toy run without workers."""
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_with_workers(tmp_path_factory: pytest.TempPathFactory, one_cache: None) -> Toy:
    """The toy run with four workers."""
    return Toy(tmp_path_factory.mktemp("toy4"), workers=4)


@pytest.fixture
def moments() -> random.Random:
    """Draws the moments of a test."""
    return random.Random(SEED)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a harness's counts, whatever pytest captures."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n  seed {SEED}: {text}", flush=True)

    return show
