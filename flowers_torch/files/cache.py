"""The folder of downloads and other cached files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$FLOWERS_TORCH_CACHE`, or `flowers_torch` in the XDG cache folder."""
    if folder := os.environ.get("FLOWERS_TORCH_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowers_torch"
