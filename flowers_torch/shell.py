"""Commands for people to copy. They run when pasted into a shell."""

import os
import re
import shlex
from pathlib import Path

from flowers_torch.files.system import WINDOWS


def command_line(*words: str | Path) -> str:
    """Words as a printable command line."""
    return " ".join(_quoted(os.fspath(word)) for word in words)


def repeat_command(folder: Path, flags: str = "") -> str:
    """The command that repeats a run from its configuration. `flags` must be quoted."""
    command = command_line("flowers-torch", "train", "--config", (folder / "config.toml").absolute())
    return f"{command} {flags}" if flags else command


def split_command(text: str) -> list[str]:
    """Words of a command line of `command_line`. ValueError: a quotation mark is missing."""
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    if WINDOWS:
        words.escape = ""
    return list(words)


def _quoted(word: str) -> str:
    if WINDOWS:  # for cmd and PowerShell; no name of a file has a quotation mark there
        word = word if word.isprintable() else "".join(c if c.isprintable() else "?" for c in word)
        if re.fullmatch(r"[\w@%+=:.,/\\~-]+", word):
            return word
        return f'"{word}\\"' if word.endswith("\\") else f'"{word}"'  # a backslash would quote the mark behind it
    if word.isprintable():
        return shlex.quote(word)
    # Control characters and undecodable bytes, in the notation of bash, zsh and POSIX 2024.
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    escaped = ("".join(f"\\{byte:03o}" for byte in os.fsencode(c)) if not c.isprintable() else c for c in plain)
    return f"$'{''.join(escaped)}'"
