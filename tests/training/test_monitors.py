"""Lines on the console and in the log file; bars only where somebody looks."""

from pathlib import Path

import pytest

from flowers_torch.training.monitors import bar, console, log, log_file


def test_lines_go_to_stdout_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console(), log_file(tmp_path / "log.txt"):
        log.info("one line")
    log.info("not shown")
    assert capsys.readouterr().out == "one line\n"
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith(" one line\n") and text.count("\n") == 1


def test_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("x", 10) as meter:
        meter.update(5)
    assert capsys.readouterr() == ("", "")
