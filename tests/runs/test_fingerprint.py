"""A run is resumed exactly, or not at all, or with a note."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from flowers_torch.config import Config
from flowers_torch.errors import UsageError
from flowers_torch.runs import fingerprint as module
from flowers_torch.runs.fingerprint import check_exact, fingerprint
from flowers_torch.training.device import Runtime

RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")
FOLDER = Path("runs/a")


def fingerprint_of(**changes: object) -> dict[str, str]:
    return fingerprint(dataclasses.replace(Config(), **changes), RUNTIME)  # type: ignore[arg-type]


@pytest.mark.parametrize("harmless", [{"workers": 4}, {"data": "elsewhere"}, {"checkpoint_minutes": 9.0}])
def test_options_that_change_no_number_are_no_difference(harmless: dict[str, object]) -> None:
    assert check_exact(fingerprint_of(), fingerprint_of(**harmless), FOLDER, False) == ""


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"batch_size": 16}, "batch_size +32 -> 16"),
        ({"precision": "bf16"}, 'precision +"auto" -> "bf16"'),
        ({"seed": 3}, "seed +0 -> 3"),
        ({"stages": Config().stages[:1]}, r"stages\.finetune\.lr +0.0003 -> None"),
    ],
)
def test_differences_are_refused_with_a_table_or_allowed_by_a_flag(
    change: dict[str, object], row: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "flowers_torch"), pytest.raises(UsageError, match="--allow-config-change"):
        check_exact(fingerprint_of(), fingerprint_of(**change), FOLDER, False)
    assert re.search(row, caplog.text)
    allowed = check_exact(fingerprint_of(), fingerprint_of(**change), FOLDER, True)
    assert re.search(row.replace(" +", " "), allowed)


def test_another_network_is_another_run() -> None:
    with pytest.raises(UsageError, match="leave size as it was, or start a new run with --from runs/a"):
        check_exact(fingerprint_of(), fingerprint_of(size=64), FOLDER, True)


def test_threads_and_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_of()
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: 77)
    with pytest.raises(UsageError, match=r"threads \d+ -> 77"):
        check_exact(before, fingerprint_of(), FOLDER, False)
    processes = fingerprint(Config(), RUNTIME, processes=2)
    with pytest.raises(UsageError, match="processes 1 -> 2"):
        check_exact(fingerprint_of(), processes, FOLDER, False)
