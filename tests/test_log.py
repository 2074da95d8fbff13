"""Lines on the console and in the log file; colours and bars only where somebody looks."""

import io
from pathlib import Path

import pytest

from flowers_torch.log import RESULT, bar, console, log, log_file, may_colour


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_people_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    with console():
        log.info("test     accuracy 0.9")
        log.info("  head 1/2")
    assert shown.getvalue() == "\x1b[1;32mtest\x1b[0m     accuracy 0.9\n  head 1/2\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not may_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not may_colour()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())  # a pipe
    assert not may_colour()


def test_quiet_leaves_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    shown = io.StringIO()
    monkeypatch.setattr("sys.stdout", shown)
    with console(quiet=True):
        log.info("  head 1/2")
        log.log(RESULT, "test     accuracy 0.9")
        assert bar("x", 3).disable
    assert shown.getvalue() == "test     accuracy 0.9\n"
    with console(), bar("x", 3) as meter:
        assert not meter.disable
