"""Errors with one line of text (what is wrong, where, and how to fix it) and an exit code.

File names are untrusted, so messages contain no line breaks and no control characters.
"""

import os
import re
import signal
from collections.abc import Sized

# What the allocators say: torch's for CUDA and MPS and for the CPU, CUDA's own, and those of cuBLAS, cuDNN and so on.
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED")


class FlowersError(Exception):
    """Base of all errors: what is wrong, with the file or flag, and what the user can do about it."""

    exit_code = 1
    quiet = False  # another process prints the error

    def __init__(self, what: str, fix: str = "") -> None:
        # A `DataLoader` worker passes on only a traceback as text, whose last line is the message.
        if "\nOriginal Traceback" in what:  # guard: R15
            what = what.strip().splitlines()[-1].partition(": ")[2] or what
        super().__init__(f"{what}; fix: {fix}" if fix else what)


class UsageError(FlowersError):
    """Invalid arguments or configuration."""

    exit_code = 2


class DataError(FlowersError):
    """Invalid data set, folder, archive or image."""

    exit_code = 3


class ModelFileError(FlowersError):
    """Invalid weights file, checkpoint or network."""

    exit_code = 4


class DivergedError(FlowersError):
    """Training gave values that are not finite."""

    exit_code = 5


class ResourceError(FlowersError):
    """Lack of disk space, memory, permission or network."""

    exit_code = 6


class DistributedError(FlowersError):
    """Another process failed, or it differs."""

    exit_code = 7


class PeerLostError(DistributedError):
    """Another process failed and prints the error."""

    quiet = True

    def __init__(self, what: str = "another process failed", fix: str = "see its error") -> None:
        super().__init__(what, fix)


class ExportError(FlowersError):
    """An exported model does not compute what the original computes."""

    exit_code = 8


class StoppedError(FlowersError):
    """A signal stopped the run after its state was saved. The exit code is 128 + `number`, as in shells."""

    def __init__(self, what: str, fix: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(what, fix)
        self.exit_code = 128 + number


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there is no memory left, on the CPU or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's may have no text
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def printable(path: object, limit: int = 200) -> str:
    """An untrusted path or name for printing: control characters are escaped, the length is limited."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # undecodable bytes of file names
    if not text.isprintable():  # guard: D25 terminal, C15
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def escaped(text: str) -> str:
    """Text of several lines with everything else that a terminal would act on escaped."""
    return text if text.isprintable() else "\n".join(printable(line, len(line) * 10) for line in text.split("\n"))


def plural(count: int | Sized, one: str, many: str = "", form: str = "") -> str:
    """3 and "photo" as "3 photos"; `many` is for what an s does not make plural. A collection is counted."""
    count = count if isinstance(count, int) else len(count)
    return f"{count:{form}} {one if count == 1 else many or one + ('es' if one.endswith('s') else 's')}"


def one_line(error: object) -> str:
    """The text of an error on one line, printable and at most 300 characters long."""
    return printable(" ".join(str(error).split()), limit=300)
