"""SIGKILL at any moment: the resumed run ends with the same bits."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from flowers_torch.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.needs("linux")]
KILLS = 100
INSIDE = 40  # of them in the middle of a save, at least


def test_sigkill_at_random_moments(small_run: Any, moments: random.Random, report: Callable[[str], None]) -> None:
    kills = inside = resumed = restarted = twice = 0
    while kills < KILLS:
        aimed = kills % 2 == 0  # at a save, which is made slow
        child, folder = small_run.start(small_run.slow_writes if aimed else None)
        while True:
            if aimed:
                number = child.counters["saves_started"] + moments.randint(1, small_run.saves)
                child.wait_for(lambda child=child, number=number: child.counters["saves_started"] >= number)
                time.sleep(moments.uniform(0, 0.06))
            else:
                time.sleep(moments.uniform(0, small_run.seconds))
            child.kill()
            code = child.wait()
            if code == 0:  # it had finished
                break
            assert code == -signal.SIGKILL, child.text()
            kills, inside = kills + 1, inside + child.counters.inside_a_save
            if moments.random() < 0.8 or not checkpoint.checkpoint_files(folder):
                break
            twice += 1  # killed again after it was resumed
            child = small_run.resume(folder, small_run.slow_writes if aimed else None)
        if code == 0:
            shutil.rmtree(folder)
            continue
        saved, _ = small_run.finish(folder)
        resumed, restarted = resumed + saved, restarted + (not saved)
    report(
        f"{kills} SIGKILLs, {inside} inside a save, {twice} of runs that had been killed before:"
        f" {resumed} runs resumed and {restarted} (nothing saved yet) started again, all bit-identical"
    )
    assert inside >= INSIDE


def test_a_run_resumes_from_every_save(small_run: Any, report: Callable[[str], None]) -> None:
    """Killed right after each save: one for each step and one at the end of each stage."""
    for number in range(1, small_run.saves + 1):

        def die_after(number: int = number) -> None:
            real, left = checkpoint.safe_save, [number]

            def save(*arguments: Any, **keywords: Any) -> None:
                real(*arguments, **keywords)
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.safe_save = save

        child, folder = small_run.start(die_after)
        assert child.wait() == -signal.SIGKILL, child.text()
        small_run.finish(folder)
    report(f"after each of {small_run.saves} saves of {small_run.steps} steps in two stages: all bit-identical")


def test_with_four_workers(
    small_run: Any,
    run_with_workers: Any,
    moments: random.Random,
    report: Callable[[str], None],
) -> None:
    assert run_with_workers.expected == small_run.expected
    kills = 0
    while kills < 8:
        child, folder = run_with_workers.start()
        child.wait_for(lambda child=child: child.counters["steps"] >= moments.randint(0, small_run.steps - 1))
        child.kill()
        if child.wait() == 0:
            shutil.rmtree(folder)
            continue
        kills += 1
        run_with_workers.finish(folder)
    report(f"{kills} SIGKILLs with {run_with_workers.workers} workers: all bit-identical")
