"""Lines on the console and in the log file; bars only where somebody looks."""

import io
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


def test_nobody_reads_and_nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """`| head -1` and `>&-`: the training must not end of it."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for stream in (Closed(), None):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        with console(), bar("x", 10) as meter:
            log.info("one line")
            meter.update(1)


def test_of_several_processes_one_talks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with console():
            log.info(f"from {rank}")
    assert capsys.readouterr().out == "from 0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_left_to_the_save(capsys: pytest.CaptureFixture[str]) -> None:
    with log_file(Path("/dev/full")):
        log.info("one line")
    assert capsys.readouterr() == ("", "")
