"""Commands for people to copy. They run when pasted into a shell."""

import os
import shlex
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """Words as a printable command line."""
    return " ".join(_quoted(os.fspath(word)) for word in words)


def repeat_command(folder: Path, flags: str = "") -> str:
    """The command that repeats a run from its configuration. `flags` must be quoted."""
    command = command_line("flowers-torch", "train", "--config", (folder / "config.toml").absolute())
    return f"{command} {flags}" if flags else command


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # Control characters and undecodable bytes, in the notation of bash, zsh and POSIX 2024.
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    escaped = ("".join(f"\\{byte:03o}" for byte in os.fsencode(c)) if not c.isprintable() else c for c in plain)
    return f"$'{''.join(escaped)}'"
