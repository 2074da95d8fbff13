"""Several processes under torchrun: one is killed, one fails, all are stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.data.loading import loaders
from flowers_torch.errors import DataError, ResourceError
from flowers_torch.files.tensors import safe_load
from flowers_torch.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.needs("linux")]
ROOT = Path(__file__).parent.parent.parent
TWO = {"processes": 2}


@pytest.fixture(scope="module")
def whole(small_run: Any) -> dict[str, Any]:
    """The result of an uninterrupted run of two processes."""
    child, folder = small_run.start(**TWO)
    assert child.wait() == 0, child.text()
    assert child.text().count("stage    1") == 1  # one of them writes the log
    return small_run.outcome(folder)


def our_errors(child: Any) -> list[str]:
    return [line for line in child.text().splitlines() if "flowers-torch: error:" in line]


def torchrun(small_run: Any, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """The real torchrun with an interpreter for each process: restarts of forked ones are not reliable."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=1", str(ROOT / "train.py"), "--config", str(small_run.root / "small.toml")]
    with log.open("wb") as output:
        return subprocess.Popen([*command, "--out", folder], stdout=output, stderr=subprocess.STDOUT)


def children(pid: int) -> list[int]:
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def result(folder: Path) -> dict[str, Any]:
    """As `outcome`, without the last checkpoint, which is not copied here."""
    weights, _ = safe_load(folder / "model.safetensors")
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "weights": {name: value.tolist() for name, value in weights.items()},
        "test": metrics["test"],
        "predictions": (folder / "predictions.csv").read_text(),
    }


def test_one_of_two_is_killed_and_torchrun_restarts_both(
    small_run: Any, tmp_path: Path, moments: random.Random, report: Callable[[str], None]
) -> None:
    with torchrun(small_run, tmp_path / "whole", tmp_path / "whole.log") as process:
        assert process.wait(900) == 0, (tmp_path / "whole.log").read_text()
    kills, longest = [0, 0], 0.0
    while sum(kills) < 20:
        folder, log = tmp_path / "run", tmp_path / "log"
        with torchrun(small_run, folder, log) as process:
            while process.poll() is None and not checkpoint.checkpoint_files(folder):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5))
            rank, processes = moments.randrange(2), children(process.pid)
            hit = len(processes) == 2 and bool(checkpoint.checkpoint_files(folder))
            if hit:
                os.kill(processes[rank], signal.SIGKILL)
            started = time.monotonic()
            assert process.wait(900) == 0, log.read_text()
        if hit and "resumed" in log.read_text():  # else it had finished
            assert "flowers-torch: error:" not in log.read_text()
            assert result(folder) == result(tmp_path / "whole")
            kills[rank], longest = kills[rank] + 1, max(longest, time.monotonic() - started)
        shutil.rmtree(folder)
    report(
        f"kill -9 of one of two processes, {kills[0]} x the main one, {kills[1]} x the other: restarted,"
        f" resumed and bit-identical to the uninterrupted run each time, at its end {longest:.1f} s later"
    )


def test_an_image_that_only_one_process_cannot_read(small_run: Any) -> None:
    def spoil() -> None:
        real, left = loaders.load_image, [12]

        def load_image(path: Path, **options: Any) -> Any:
            left[0] -= 1
            if os.environ["RANK"] == "1" and left[0] == 0:
                raise DataError(f"{path} is cut off", "replace or remove it")
            return real(path, **options)

        loaders.load_image = load_image

    child, folder = small_run.start(spoil, **TWO)
    started = time.monotonic()
    assert child.wait(60) != 0
    assert time.monotonic() - started < 60
    assert len(our_errors(child)) == 1 and "is cut off" in our_errors(child)[0], child.text()
    assert "torchrun: 3" in child.text() or "torchrun: 7" in child.text()
    shutil.rmtree(folder)


def test_the_main_process_cannot_save(small_run: Any) -> None:
    def spoil() -> None:
        real, left = checkpoint.safe_save, [3]

        def save(*arguments: Any, **keywords: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise ResourceError("cannot write: No space left on device", "free space")
            real(*arguments, **keywords)

        checkpoint.safe_save = save

    child, folder = small_run.start(spoil, **TWO)
    assert child.wait(60) != 0
    assert len(our_errors(child)) == 1 and "No space left" in our_errors(child)[0], child.text()
    assert checkpoint.read_newest_checkpoint(folder).state.step == 2


def test_a_kill_without_restarts_leaves_a_checkpoint(small_run: Any, whole: dict[str, Any]) -> None:
    child, folder = small_run.start(**TWO)
    assert child.wait_for(lambda: child.counters["steps"] >= 4), child.text()
    os.kill(child.counters["pid1"], signal.SIGKILL)
    assert child.wait() != 0
    again = small_run.resume(folder, **TWO)
    assert again.wait() == 0, again.text()
    assert small_run.outcome(folder) == whole


def test_sigterm_to_torchrun_saves_once_for_all_processes(small_run: Any, whole: dict[str, Any]) -> None:
    child, folder = small_run.start(**TWO)
    assert child.wait_for(lambda: child.counters["steps"] >= 3), child.text()
    child.kill(signal.SIGTERM)
    started = time.monotonic()
    child.wait()
    assert time.monotonic() - started < 30
    assert len(our_errors(child)) == 1 and "--resume" in our_errors(child)[0], child.text()
    assert small_run.global_step(folder) == child.counters["steps"]
    again = small_run.resume(folder, **TWO)
    assert again.wait() == 0, again.text()
    assert again.counters["steps"] + child.counters["steps"] == small_run.steps
    assert small_run.outcome(folder) == whole


def test_another_number_of_processes_is_not_exact(small_run: Any) -> None:
    child, folder = small_run.start(**TWO)
    assert child.wait_for(lambda: child.counters["steps"] >= 3), child.text()
    child.kill(signal.SIGTERM)
    child.wait()
    alone = small_run.resume(folder)
    assert alone.wait() == 2 and "processes 2 -> 1" in our_errors(alone)[0]
    allowed = small_run.resume(folder, None, "--allow-config-change")
    assert allowed.wait() == 0, allowed.text()
    assert "processes 2 -> 1" in (folder / "metrics.json").read_text()
