"""The folder of downloads, and files that only save time: damaged or missing ones never end a run."""

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from flowers_torch.errors import FlowersError, ResourceError
from flowers_torch.files.atomic import atomic_write, to_json
from flowers_torch.files.reading import check, read_bytes, reading
from flowers_torch.log import log

CACHE_FIX = "free space, or name another folder with --cache or FLOWERS_TORCH_CACHE"


def cache_folder() -> Path:
    """`$FLOWERS_TORCH_CACHE`, or `flowers_torch` in the XDG cache folder.

    For a user without a home this is a folder that cannot be made: what needs none works.
    """
    try:
        if folder := os.environ.get("FLOWERS_TORCH_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowers_torch"
    except RuntimeError:  # guard: R25 home
        return Path(os.devnull, "there is no home folder")


def remember(path: Path, value: Any) -> None:
    """Writes JSON values with a checksum; a folder that cannot be written or a full disk is a note in the log."""
    content = to_json(value).encode()
    try:
        with atomic_write(path) as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except ResourceError as error:  # guard: R25 write
        log.info(f"note     {str(error).partition('; fix: ')[0]}, so it has to be computed again next time")


def recall(path: Path, form: Any) -> Any:
    """What `remember` wrote, if it has a form of `check`; None if it is missing, damaged or different."""
    try:
        digest, _, content = read_bytes(path, "a cached file", limit=sys.maxsize).partition(b"\n")
        if digest.decode("latin-1") != hashlib.sha256(content).hexdigest():  # guard: S10
            return None
        with reading(path, "a cached file"):
            return check(json.loads(content), form)
    except FlowersError:
        return None


def prune(folder: Path, max_age: float, max_bytes: float = math.inf) -> None:
    """Removes files that are older than some seconds, then the oldest ones beyond a size of all together."""
    left = max_bytes
    with contextlib.suppress(OSError):  # another process may prune too
        stats = sorted(((path.stat(), path) for path in folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
        for stat, path in stats:
            left -= stat.st_size
            if left < 0 or time.time() - stat.st_mtime > max_age:
                path.unlink(missing_ok=True)
