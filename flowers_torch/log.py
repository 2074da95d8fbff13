"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere, and a log file."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowers_torch.errors import UsageError

log = logging.getLogger("flowers_torch")
log.setLevel(logging.INFO)  # its handlers decide who sees the lines; without one nobody does
RESULT = logging.INFO + 5  # level of the lines that --quiet leaves

# Escape sequences for the word that a line begins with; any other word stays as it is.
COLOURS = {
    "test": "1;32",
    "report": "1;32",
    "next": "1;32",
    "note": "33",
    "selective": "36",
    "plan": "36",
    "try": "33",
}
PLAIN_WORDS = ("data", "network", "weights", "device", "stage", "model", "resumed", "fold", "folds", "time")
COLOURS |= dict.fromkeys(PLAIN_WORDS, "1")
_state = {"quiet": False}


class _ConsoleHandler(logging.Handler):
    """Prints records on stdout without tearing a bar apart."""

    def emit(self, log_record: logging.LogRecord) -> None:
        if sys.stdout is None:  # closed from the start (`>&-`)
            return
        # guard: R05
        with contextlib.suppress(BrokenPipeError):  # `| head`: nobody reads on, but the training goes on
            message = log_record.getMessage()
            tqdm.write(coloured(message) if may_colour() else message, file=sys.stdout)
            sys.stdout.flush()


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun's number of this process


def may_colour() -> bool:
    """Whether a person looks at a terminal that shows colours and has not asked for none (no-color.org)."""
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    return not os.environ.get("NO_COLOR") and not dumb and sys.stdout is not None and sys.stdout.isatty()


def coloured(message: str) -> str:
    """A line with its first word in colour."""
    word = message.split(" ", 1)[0]
    return f"\x1b[{COLOURS[word]}m{word}\x1b[0m{message[len(word) :]}" if word in COLOURS else message


@contextmanager
def console(quiet: bool = False) -> Iterator[None]:
    """Shows the log's lines on stdout inside; of several processes only the main one's.

    Args:
        quiet: Show the results only, and no bars.
    """
    if not _is_main():
        yield
        return
    handler = _ConsoleHandler(RESULT if quiet else logging.INFO)
    log.addHandler(handler)
    _state["quiet"] = quiet
    try:
        yield
    finally:
        log.removeHandler(handler)
        _state["quiet"] = False


class _FileHandler(logging.FileHandler):
    """Leaves it to the next save to speak of a full disk; logging would print a trace for each line."""

    def handleError(self, log_record: logging.LogRecord) -> None:  # guard: C17 log
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Appends the log's lines, with the time, to a file inside."""
    handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def bar(title: str, total: int, done: int = 0) -> "tqdm[Any]":
    """A bar on stderr that counts photos and shows speed and time left; silent where nobody looks."""
    nobody_looks = sys.stderr is None or not sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit="img",
        file=sys.stderr,
        disable=nobody_looks or _state["quiet"] or not _is_main(),
        leave=False,
        dynamic_ncols=True,
    )


def write_tensorboard(folder: Path, row: dict[str, Any], epoch: int) -> None:
    """Adds an epoch's numbers to TensorBoard's log of a run.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        fix = 'pip install "flowers-torch[tensorboard]", or tensorboard = false'
        raise UsageError("tensorboard = true needs the package tensorboard", fix) from error
    with SummaryWriter(str(folder)) as writer:  # a file an epoch: nothing is open when a run is killed
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, epoch)
