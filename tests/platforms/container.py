"""Makes this process one in a bare container: nothing can be written, and there is no home, account or /tmp."""

import contextlib
import errno
import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")


class ReadOnly:
    """A hook of `sys.addaudithook`, which can be switched off but not removed."""

    def __init__(self) -> None:
        self.writable: tuple[str, ...] | None = None  # folders; None switches the hook off

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.writable is None or event not in ("open", *CHANGES):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        for path in arguments[: 1 if event == "open" else 2]:
            if isinstance(path, str | bytes) and not self.may_write(os.path.abspath(os.fsdecode(path))):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))

    def may_write(self, path: str) -> bool:
        return path.startswith((*(self.writable or ()), "/dev/"))


_read_only = ReadOnly()
_installed: list[ReadOnly] = []


@contextlib.contextmanager
def simulated(*writable: Path) -> Iterator[None]:
    """Only files below the given folders can be written inside."""

    def unknown(*arguments: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    if not _installed:
        sys.addaudithook(_read_only)
        _installed.append(_read_only)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CACHE_HOME", "FLOWERS_TORCH_CACHE", "TMPDIR", "USER", "LOGNAME"):
            patch.delenv(name, raising=False)
        patch.setattr(pwd, "getpwuid", unknown)
        patch.setattr(pwd, "getpwnam", unknown)
        patch.setattr(tempfile, "tempdir", None)
        _read_only.writable = tuple(str(folder.resolve()) for folder in writable)
        try:
            yield
        finally:
            _read_only.writable = None
