"""Errors that a person can act on: one line that says what is wrong, where, and what to type.

Every error carries the exit code that the command line ends with. A message never spans lines and
never passes raw control characters on to a terminal, because file names come from strangers.
"""

import os
import signal


class FlowersError(Exception):
    """Base of all errors of this package.

    Args:
        what: What is wrong, naming the file or flag. One line.
        fix: What the user can do about it; empty where nothing useful can be said.

    A single-string message also survives a trip through a `DataLoader` worker, which rebuilds an
    exception from its text alone, with the worker's trace around it: the message is the last line of that.
    """

    exit_code = 1
    quiet = False  # another process says it

    def __init__(self, what: str, fix: str = "") -> None:
        if "\nOriginal Traceback" in what:  # guard: R15
            what = what.strip().splitlines()[-1].partition(": ")[2] or what
        super().__init__(f"{what}; fix: {fix}" if fix else what)


class UsageError(FlowersError):
    """Arguments or configuration that cannot be used."""

    exit_code = 2


class DataError(FlowersError):
    """A data set, folder, archive or photo that cannot be used."""

    exit_code = 3


class ModelFileError(FlowersError):
    """A weights file, checkpoint or network that cannot be used."""

    exit_code = 4


class DivergedError(FlowersError):
    """Training produced numbers that are not finite."""

    exit_code = 5


class ResourceError(FlowersError):
    """Disk, memory, permission or network."""

    exit_code = 6


class DistributedError(FlowersError):
    """A peer process failed or disagrees."""

    exit_code = 7


class PeerLostError(DistributedError):
    """This process ends because another one did, which has said why."""

    quiet = True

    def __init__(self, what: str = "another process failed", fix: str = "see its error") -> None:
        super().__init__(what, fix)


class ExportError(FlowersError):
    """An exported model does not compute what the original computes."""

    exit_code = 8


class StoppedError(FlowersError):
    """A signal asked the run to stop, and it did, after saving.

    Args:
        number: Of the signal; the exit code is 128 more, as shells have it.
    """

    def __init__(self, what: str, fix: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(what, fix)
        self.exit_code = 128 + number


def printable(path: object, limit: int = 200) -> str:
    """A path or name from outside, safe to print: control characters escaped, length bounded."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # undecodable bytes of file names
    if not text.isprintable():  # guard: D25 terminal, C15
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def one_line(error: object) -> str:
    """The text of an error on one line, printable and at most 300 characters long."""
    return printable(" ".join(str(error).split()), limit=300)
