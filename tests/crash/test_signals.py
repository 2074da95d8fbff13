"""SIGTERM and SIGINT: the step is finished, everything is saved, and no step is done twice."""

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

from flowers_torch.files import atomic
from flowers_torch.runs import stage
from flowers_torch.training import checkpoint
from flowers_torch.training import step as step_module

pytestmark = [pytest.mark.slow, pytest.mark.needs("linux")]
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 40), (signal.SIGINT, 20)])
def test_one_signal(
    number: signal.Signals, times: int, small_run: Any, moments: random.Random, report: Callable[[str], None]
) -> None:
    done, redone, longest = 0, 0, 0.0
    while done < times:
        child, folder = small_run.start()
        aim = moments.randint(1, small_run.steps)
        child.wait_for(lambda child=child, aim=aim: child.counters["steps"] >= aim)
        time.sleep(moments.uniform(0, small_run.seconds / small_run.steps))
        child.kill(number)
        sent = time.monotonic()
        code = child.wait()
        if code == 0:  # it had finished
            shutil.rmtree(folder)
            continue
        longest = max(longest, time.monotonic() - sent)
        assert code == 128 + number, child.text()
        lines = [line for line in child.text().splitlines() if line.startswith("flowers-torch: error:")]
        assert len(lines) == 1 and number.name in lines[0] and "--resume" in lines[0], lines
        steps = child.counters["steps"]
        assert small_run.global_step(folder) == steps
        saved, second = small_run.finish(folder)
        assert saved
        redone = max(redone, steps + second.counters["steps"] - small_run.steps)
        done += 1
    report(f"{done} x {number.name}: exit {128 + number}, at most {longest:.2f} s, {redone} steps done twice")
    assert redone <= 1 and longest < 10


MOMENTS: dict[str, tuple[Any, str]] = {
    "first step": (step_module, "train_step"),
    "save": (checkpoint, "safe_save"),
    "validation": (stage, "collect"),
    "start of a stage": (stage, "make_train_state"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_a_certain_moment(moment: str, small_run: Any) -> None:
    module, name = MOMENTS[moment]

    def hook() -> None:
        real, left = getattr(module, name), [1]

        def signalled(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments, **keywords)

        setattr(module, name, signalled)

    child, folder = small_run.start(hook)
    assert child.wait() == 128 + signal.SIGTERM, child.text()
    saved, second = small_run.finish(folder)
    assert saved and child.counters["steps"] + second.counters["steps"] <= small_run.steps + 1


def test_a_second_signal_ends_immediately(small_run: Any, report: Callable[[str], None]) -> None:
    """In the middle of a save that takes two seconds."""

    def very_slow() -> None:
        small_run.slow_writes()
        real = os.fsync

        def fsync(descriptor: int) -> None:
            time.sleep(1)
            real(descriptor)

        atomic.os.fsync = fsync

    longest = 0.0
    for first, second in [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)] * 3:
        child, folder = small_run.start(very_slow)
        assert child.wait_for(lambda child=child: child.counters.inside_a_save)
        child.kill(first)
        time.sleep(0.1)
        child.kill(second)
        sent = time.monotonic()
        code = child.wait()
        longest = max(longest, time.monotonic() - sent)
        assert code in (128 + second, -second), child.text()
        assert child.counters.inside_a_save  # it did not wait for the save
        small_run.finish(folder)
    report(f"6 second signals: gone within {longest:.2f} s, all bit-identical afterwards")
    assert longest < 10


def test_nobody_reads_the_output(small_run: Any, tmp_path: Path) -> None:
    """`train.py ... | head -1`: training continues to its end without an error."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config",
        str(small_run.root / "small.toml"),
        "--out",
    ]
    errors = tmp_path / "errors"
    with errors.open("w") as stderr:
        with subprocess.Popen([*command, tmp_path / "run"], stdout=subprocess.PIPE, stderr=stderr) as process:
            assert process.stdout
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(300) == 0 and not errors.read_text(), errors.read_text()
    assert (tmp_path / "run" / "metrics.json").is_file()
