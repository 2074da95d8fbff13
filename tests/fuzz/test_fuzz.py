"""A tenth of the fuzzer with one seed; `python -m tests.fuzz --seed 1 2 3` runs all of it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.needs("linux")
def test_no_promise_is_broken() -> None:
    words = ["-m", "tests.fuzz", "--seed", "7", "--images", "300", "--files", "250", "--requests", "500"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert "no promise was broken" in done.stdout
