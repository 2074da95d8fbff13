"""Errors for Python programs name arguments where those of the command line name flags.

The package writes its messages once, with flags. `for_python` rewrites them where a public function ends.
"""

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from flowers_torch.errors import FlowersError

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
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)(?:(?:=| )(?!-)('[^']*'|[^\s,;()]*[^\s,;():.]))?")

_in_command = contextvars.ContextVar("in_command", default=False)


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Errors keep their flags inside."""
    token = _in_command.set(True)
    try:
        yield
    finally:
        _in_command.reset(token)


def for_python(function: Callable[P, T]) -> Callable[P, T]:
    """A public function whose errors name arguments."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except FlowersError as error:
            if not _in_command.get():
                error.args = (with_arguments(str(error)),)
            raise

    return called


def with_arguments(message: str) -> str:
    """A message with arguments in place of flags; commands in it stay as they are.

    >>> with_arguments("--batch-size 3 is too small; fix: use --batch-size 8, or --skip-bad")
    'batch_size=3 is too small; fix: use batch_size=8, or skip_bad=True'
    """
    program = PROGRAMS.search(message)
    end = program.start() if program else len(message)
    return FLAG.sub(_argument, message[:end]) + message[end:]


def _argument(found: re.Match[str]) -> str:
    flag, value = found[1], found[2]
    name = NAMES.get(flag, flag.replace("-", "_"))
    if flag in SWITCHES:
        return f"{name}=True{f' {value}' if value else ''}"
    if flag == "resume":
        return f"{name}({f'{value!r}' if value else ''})"
    if flag == "from" and value:  # a run, of which the weights are taken
        value = f"{value.strip(chr(39))}/model.safetensors"
    if value is None:
        return name
    if value in PROSE:
        return f"{name} {value}"
    if flag == "set" and "=" in value:
        key, _, setting = value.partition("=")
        return f"{key}={_literal(setting)}" if "." not in key else f'**{{"{key}": {_literal(setting)}}}'
    return f"{name}={_literal(value)}"


def _literal(value: str) -> str:
    """A value as Python writes it; names in capitals stand for a value."""
    value = value.strip("'")
    if re.fullmatch(r"[A-Z_]{2,}", value) or re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value):
        return value
    if re.fullmatch(r"\d+(\.\d+)?%", value):
        return f"{float(value[:-1]) / 100:g}"
    return f'"{value}"'
