"""Messages for Python programs name arguments and calls where those of the command line name flags and commands.

The package writes its messages once, with flags. Within a public function, which `for_python` marks, every line of
the log is rewritten, and every error where the function ends.
"""

import contextlib
import contextvars
import functools
import logging
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ParamSpec, TypeVar

from flowers_torch.errors import FlowersError
from flowers_torch.log import log
from flowers_torch.shell import split_command

P = ParamSpec("P")
T = TypeVar("T")

# Flags whose argument in Python has another name; all others have the same, with underscores.
NAMES = {
    **{
        "arch": "model",
        "config": "recipe",
        "time": "minutes",
        "tta": "views",
        "subset": "split",
        "folder": "as_folder",
    },
    **{"resume": "flowers_torch.resume", "from": "weights"},
}
SWITCHES = frozenset(  # flags without a value
    "skip-bad head-only overwrite int8 with-preprocessing folder allow-config-change allow-data-change".split()
)
# Words behind a flag that are not its value.
PROSE = frozenset(
    "a an and applies are as at before cannot chooses for here holds in instead is mirrors needs of on or that takes "
    "than the then to which with".split()
)
PROGRAMS = re.compile(r"\b(flowers-torch|torchrun|python|pip|npm|docker) [a-z-].*", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)(?:(?:=| )(?!-)('[^']*'|\d+(?:,\d+)+|[^\s,;()]*[^\s,;():.]))?")
# Commands that are calls in Python. Their words end with the message or at a parenthesis.
COMMAND = re.compile(r"""\bflowers-torch (train|predict)((?: (?:'[^']*'|"[^"]*"|[^\s()'"])+)+)""")

_reader = contextvars.ContextVar("reader", default="")  # of messages: "command line", "Python", or not known


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Messages keep their flags inside."""
    token = _reader.set("command line")
    try:
        yield
    finally:
        _reader.reset(token)


def for_python(function: Callable[P, T]) -> Callable[P, T]:
    """A public function whose messages name arguments."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _reader.set(_reader.get() or "Python")
        try:
            return function(*args, **kwargs)
        except FlowersError as error:
            if _reader.get() == "Python":
                error.args = (with_arguments(str(error)),)
            raise
        finally:
            _reader.reset(token)

    return called


def _rewrite(line: logging.LogRecord) -> bool:
    if _reader.get() == "Python":
        line.msg, line.args = with_arguments(line.getMessage()), ()
    return True


log.addFilter(_rewrite)


def with_arguments(message: str) -> str:
    """A message with arguments in place of flags, and calls in place of commands; other commands stay as they are.

    >>> with_arguments("--batch-size 3 is too small; fix: use --batch-size 8, or --skip-bad")
    'batch_size=3 is too small; fix: use batch_size=8, or skip_bad=True'
    >>> with_arguments("resume with: flowers-torch train --resume runs/a-1")
    'resume with: flowers_torch.resume("runs/a-1")'
    """
    message = COMMAND.sub(_call, message)
    program = PROGRAMS.search(message)
    end = program.start() if program else len(message)
    return FLAG.sub(_argument, message[:end]) + message[end:]


def _call(found: re.Match[str]) -> str:
    try:
        words = split_command(found[2])
    except ValueError:  # a quotation mark is missing, because a long name was shortened
        return found[0]
    if found[1] == "predict" and len(words) > 1 and not any(word.startswith("-") for word in words):
        run, *images = map(_literal, words)
        return f"flowers_torch.Classifier.load({run})({', '.join(images)})"
    if found[1] == "train" and words[0] == "--resume" and len(words) == 2:
        return f"flowers_torch.resume({_literal(words[1])})"
    if found[1] == "train":
        flags = [index for index, word in enumerate(words) if word.startswith("--")] + [len(words)]
        pairs = [words[first:last] for first, last in pairwise(flags)]
        if flags[0] == 0 and all(len(pair) <= 2 for pair in pairs):
            return f"flowers_torch.train({', '.join(_keyword(*pair) for pair in pairs)})"
    return found[0]


def _argument(found: re.Match[str]) -> str:
    flag, value = found[1], found[2]
    if flag in SWITCHES and value or value in PROSE:
        return f"{_keyword(flag)} {value}"
    return _keyword(flag, value and value.strip("'"))


def _keyword(flag: str, value: str | None = None) -> str:
    """The argument that does what a flag does, with its value if it has one."""
    flag = flag.removeprefix("--")
    name = NAMES.get(flag, flag.replace("-", "_"))
    if flag in SWITCHES:
        return f"{name}=True"
    if flag == "resume":
        return f"{name}({_literal(value) if value else ''})"
    if value is None:
        return name
    if flag == "from":  # a run, of which the weights are taken
        value = f"{value}/model.safetensors"
    if flag == "set" and "=" in value:
        key, _, setting = value.partition("=")
        return f"{key}={_literal(setting)}" if "." not in key else f'**{{"{key}": {_literal(setting)}}}'
    return f"{name}={_literal(value)}"


def _literal(value: str) -> str:
    """A value as Python writes it; names in capitals stand for a value."""
    if re.fullmatch(r"[A-Z_]{2,}(\.\.\.)?", value) or re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value):
        return value.removesuffix("...")
    if re.fullmatch(r"\d+(,\d+)+", value):
        return f"({value.replace(',', ', ')})"
    if re.fullmatch(r"\d+(\.\d+)?%", value):
        return f"{float(value[:-1]) / 100:g}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
