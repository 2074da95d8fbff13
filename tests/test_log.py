"""Lines on the console and in the log file; colors and bars only in a terminal."""

import io
from pathlib import Path

import pytest

from flowers_torch.log import RESULT, bar, console, log, log_file, use_color


def test_lines_go_to_stdout_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console(), log_file(tmp_path / "log.txt"):
        log.info("one line")
    log.info("not shown")
    assert capsys.readouterr().out == "one line\n"
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith(" one line\n") and text.count("\n") == 1


def test_no_name_of_a_stranger_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console(), log_file(tmp_path / "log.txt"):
        log.info("photo \x1b[2J\x07 of two\nlines")
        log.warning("photo %s", "\u202egnp\x9b31m\r")
    expected = "photo \\x1b[2J\\x07 of two\nlines\nphoto \\u202egnp\\x9b31m\\r\n"
    assert capsys.readouterr().out == expected
    assert (tmp_path / "log.txt").read_text().count("\\x1b[2J") == 1


def test_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("x", 10) as meter:
        meter.update(5)
    assert capsys.readouterr() == ("", "")


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """`| head -1` and `>&-` do not stop the training."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for stream in (Closed(), None):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        with console(), bar("x", 10) as meter:
            log.info("one line")
            meter.update(1)


def test_only_the_main_process_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with console():
            log.info(f"from {rank}")
    assert capsys.readouterr().out == "from 0\n"


@pytest.mark.needs("pipes")
def test_a_full_disk_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    with log_file(Path("/dev/full")):
        log.info("one line")
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colors_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    with console():
        log.info("test     accuracy 0.9")
        log.info("  head 1/2")
    assert shown.getvalue() == "\x1b[1;32mtest\x1b[0m     accuracy 0.9\n  head 1/2\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not use_color()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())  # a pipe
    assert not use_color()


def test_quiet_prints_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
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
