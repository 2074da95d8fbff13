"""The output of a run: lines on stdout and in a log file, and a progress bar in a terminal."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flowers_torch.errors import ResourceError, escaped, printable

if TYPE_CHECKING:
    from tqdm import tqdm  # imported where it is used: `--help` takes half the time without it

log = logging.getLogger("flowers_torch")
log.setLevel(logging.INFO)  # shown only by the handlers below
RESULT = logging.INFO + 5  # level of the lines that --quiet prints

# First words of lines by the escape sequence of their color; 1 is bold.
WORDS = {
    "1": "data network weights device stage features model resumed fold folds time",
    "1;32": "test report next",
    "33": "note try",
    "36": "scaling plan",
}
COLORS = {word: code for code, words in WORDS.items() for word in words.split()}
_state = {"quiet": False}


class _ConsoleHandler(logging.Handler):
    """Prints records on stdout above a progress bar."""

    def emit(self, log_record: logging.LogRecord) -> None:
        if sys.stdout is None:  # closed from the start (`>&-`)
            return
        from tqdm import tqdm

        # guard: R05
        with contextlib.suppress(BrokenPipeError):  # `| head`: training continues without a reader
            message = log_record.getMessage()
            tqdm.write(colored(message) if use_color() else message, file=sys.stdout)
            sys.stdout.flush()


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun


def use_color() -> bool:
    """Whether stdout is a terminal that shows colors, and NO_COLOR is not set (no-color.org)."""
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    return not os.environ.get("NO_COLOR") and not dumb and sys.stdout is not None and sys.stdout.isatty()


def colored(message: str) -> str:
    """A line with its first word in color."""
    word = message.split(" ", 1)[0]
    return f"\x1b[{COLORS[word]}m{word}\x1b[0m{message[len(word) :]}" if word in COLORS else message


@contextmanager
def console(quiet: bool = False) -> Iterator[None]:
    """Prints the log on stdout within the context, in the main process only; `quiet` only results, and no bars."""
    handler = _ConsoleHandler(RESULT if quiet else logging.INFO)
    if _is_main():
        log.addHandler(handler)
    _state["quiet"] = quiet
    try:
        yield
    finally:
        log.removeHandler(handler)
        _state["quiet"] = False


@contextmanager
def silence() -> Iterator[None]:
    """Prints nothing within the context, and no progress bars."""
    before, _state["quiet"] = _state["quiet"], True
    try:
        yield
    finally:
        _state["quiet"] = before


def _escape(log_record: logging.LogRecord) -> bool:
    """Escapes what a terminal would act on, whatever name of a stranger a message holds, for every handler."""
    log_record.msg, log_record.args = escaped(log_record.getMessage()), ()
    return True


log.addFilter(_escape)  # guard: S5 log


class _FileHandler(logging.StreamHandler[TextIO]):
    """Ignores a full disk, which the next save reports; logging would print a traceback for each line."""

    def handleError(self, log_record: logging.LogRecord) -> None:  # guard: C17 log
        pass


@contextmanager
def collected() -> Iterator[list[logging.LogRecord]]:
    """What is logged within the context, for a file in a folder that is made later."""
    handler = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
    log.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        log.removeHandler(handler)


@contextmanager
def log_file(
    path: Path, opener: Callable[[str, int], int] | None = None, before: Sequence[logging.LogRecord] = ()
) -> Iterator[None]:
    """Appends the log, with the time of each line, to a file within the context; first what is `before` it.

    Raises:
        ResourceError: the file cannot be written.
    """
    try:
        file = open(path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)
    except OSError as error:
        raise ResourceError(f"cannot write {printable(path)}: {error.strerror}", "remove it") from error
    handler = _FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for each in before:
        handler.handle(each)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
        with contextlib.suppress(OSError):
            file.close()


def bar(title: str, total: int, done: int = 0) -> "tqdm[Any]":
    """A progress bar on stderr that counts images; disabled if stderr is not a terminal."""
    from tqdm import tqdm

    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    disable = not is_terminal or _state["quiet"] or not _is_main()
    options: dict[str, Any] = {"unit": "img", "leave": False, "dynamic_ncols": True}
    return tqdm(desc=title, total=total, initial=done, file=sys.stderr, disable=disable, **options)
