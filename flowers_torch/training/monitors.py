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


class _ConsoleHandler(logging.Handler):
    """Prints records on stdout without tearing a bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:  # closed from the start (`>&-`)
            return
        with contextlib.suppress(BrokenPipeError):  # `| head`: nobody reads on, but the training goes on
            tqdm.write(record.getMessage(), file=sys.stdout)
            sys.stdout.flush()


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun's number of this process


@contextmanager
def console() -> Iterator[None]:
    """Shows the log's lines on stdout inside; of several processes only the main one's."""
    if not _is_main():
        yield
        return
    handler = _ConsoleHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _FileHandler(logging.FileHandler):
    """Leaves it to the next save to speak of a full disk; logging would print a trace for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
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
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit="img",
        file=sys.stderr,
        disable=sys.stderr is None or not sys.stderr.isatty() or not _is_main(),
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
