"""SIGKILL at any moment: the run goes on to the same bits."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from flowers_torch.training import checkpoint

pytestmark = pytest.mark.slow
KILLS = 100
INSIDE = 40  # of them in the middle of a save, at least


def test_sigkill_at_random_moments(toy: Any, moments: random.Random, report: Callable[[str], None]) -> None:
    kills = inside = resumed = anew = twice = 0
    while kills < KILLS:
        aimed = kills % 2 == 0  # at a save, which is made slow
        child, folder = toy.start(toy.slow_writes if aimed else None)
        while True:
            if aimed:
                number = child.counters["saves_begun"] + moments.randint(1, toy.saves)
                child.wait_for(lambda child=child, number=number: child.counters["saves_begun"] >= number)
                time.sleep(moments.uniform(0, 0.06))
            else:
                time.sleep(moments.uniform(0, toy.seconds))
            child.kill()
            code = child.wait()
            if code == 0:  # it was at its end already
                break
            assert code == -signal.SIGKILL, child.text()
            kills, inside = kills + 1, inside + child.counters.inside_a_save
            if moments.random() < 0.8 or not checkpoint.checkpoint_files(folder):
                break
            twice += 1  # once more, while it goes on
            child = toy.resume(folder, toy.slow_writes if aimed else None)
        if code == 0:
            shutil.rmtree(folder)
            continue
        saved, _ = toy.finish(folder)
        resumed, anew = resumed + saved, anew + (not saved)
    report(
        f"{kills} SIGKILLs, {inside} inside a save, {twice} of runs that had been killed before:"
        f" {resumed} runs resumed and {anew} (nothing saved yet) begun anew, all bit-identical"
    )
    assert inside >= INSIDE


def test_every_step_is_a_point_to_go_on_from(toy: Any, report: Callable[[str], None]) -> None:
    """Dies right after each of the saves, of which there is one a step and one at the end of each stage."""
    for number in range(1, toy.saves + 1):

        def die_after(number: int = number) -> None:
            real, left = checkpoint.safe_save, [number]

            def save(*arguments: Any, **keywords: Any) -> None:
                real(*arguments, **keywords)
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.safe_save = save

        child, folder = toy.start(die_after)
        assert child.wait() == -signal.SIGKILL, child.text()
        toy.finish(folder)
    report(f"killed after each of {toy.saves} saves of {toy.steps} steps and two stages: all bit-identical")


def test_with_four_workers(
    toy: Any,
    toy_with_workers: Any,
    moments: random.Random,
    report: Callable[[str], None],
) -> None:
    assert toy_with_workers.expected == toy.expected
    kills = 0
    while kills < 8:
        child, folder = toy_with_workers.start()
        child.wait_for(lambda child=child: child.counters["steps"] >= moments.randint(0, toy.steps - 1))
        child.kill()
        if child.wait() == 0:
            shutil.rmtree(folder)
            continue
        kills += 1
        toy_with_workers.finish(folder)
    report(f"{kills} SIGKILLs with {toy_with_workers.workers} workers: all bit-identical, as to no workers")
