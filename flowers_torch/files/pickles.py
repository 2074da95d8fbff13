"""The pickles of `.pth` files: what they ask for, found without running anything, and placeholders for foreign objects.

Checkpoints hold arguments, paths, numpy numbers or whole networks beside or around their tensors. No class of a file
is imported or called: an empty `Placeholder` stands for each of its objects.
"""

import _compat_pickle
import contextlib
import io
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from flowers_torch.errors import plural

MAX_SCANNED = 16 << 20  # bytes at the start of a file in which names of classes are looked for
MAX_CLASSES = 256  # torch looks through all of them for each object
MAX_BYTES_PICKLE = 2 << 20  # of a pickle that holds bytes, which is read word by word
MAX_ENCODED = 1 << 20  # of all bytes in a pickle, as text
ENCODE = b"_codecs\nencode\n"  # how protocol 2 writes bytes, such as those of numpy's numbers
GLOBAL = re.compile(rb"c([A-Za-z_][A-Za-z0-9_.]{0,100})\n([A-Za-z_][A-Za-z0-9_.]{0,100})\n")
# Of Python's own library only these become placeholders: others are a sign of an attack.
HARMLESS = re.compile(
    r"(argparse\.Namespace|types\.SimpleNamespace|functools\.partial|uuid\.UUID|decimal\.Decimal|enum\.\w+)|"
    r"(collections\.(defaultdict|deque)|(pathlib|pathlib\._local|datetime|typing)\.\w+)|"
    r"builtins\.(list|dict|tuple|int|float|str|bool|object|slice|range|frozenset)|"
    r"builtins\.getattr"  # how an enum is written by Python 3.11.0 to 3.11.3; its placeholder gets nothing
)
IS_DICT = re.compile(r"Can only SETITEMS? for dict.*but got <class '[\w.]*\.(\w+)'>")  # torch, of a placeholder


class Placeholder(list[Any]):
    """Stands for an object of a class that is not imported. Of a network it holds the state."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __new__(cls, *arguments: Any, **options: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) and "_modules" in state else {}

    def network_state(self, depth: int = 30) -> dict[str, Any]:
        """The parameters and buffers of a network, as its `state_dict` would name them."""
        state = getattr(self, "state", {})
        tables = (state.get("_parameters"), state.get("_buffers"))
        found = {str(name): tensor for table in tables if isinstance(table, dict) for name, tensor in table.items()}
        modules = state.get("_modules")
        for name, module in modules.items() if isinstance(modules, dict) and depth else ():
            if isinstance(module, Placeholder):
                found |= {f"{name}.{inner}": tensor for inner, tensor in module.network_state(depth - 1).items()}
        return found


def _mapping(*arguments: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


@contextlib.contextmanager
def placeholders(content: Any, dicts: Container[str]) -> Iterator[None]:
    """Lets `torch.load(weights_only=True)` read the objects of a file's foreign classes as placeholders.

    Functions and classes of Python's own library stay refused, except for a few harmless ones.

    Args:
        content: The file's bytes, or a memory map of them.
        dicts: Names of the classes whose objects are filled like a dict.
    """
    names = {match.groups() for match in GLOBAL.finditer(content, 0, MAX_SCANNED)}
    if len(names) > MAX_CLASSES:  # guard: S4 classes
        raise ValueError(f"it names {plural(names, 'class', form=',')}")
    stand_ins: list[Any] = []
    for module, name in names:
        place, _, kind = _current(module.decode(), name.decode()).rpartition(".")
        root = place.partition(".")[0]
        if root in sys.stdlib_module_names and not HARMLESS.fullmatch(f"{place}.{kind}"):  # guard: S4 library
            continue
        own_class = OrderedDict if kind in dicts else type(kind, (Placeholder,), {})
        stand_ins.append((_mapping if kind == "defaultdict" else own_class, f"{place}.{kind}"))
    with torch.serialization.safe_globals(stand_ins):
        yield


def _current(module: str, name: str) -> str:
    """The name in Python 3 of what a pickle of protocol 2 calls as Python 2 did."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def holds_only_short_bytes(path: Path, content: Any) -> bool:
    """Whether a file's pickles make bytes only as numpy's numbers need them: few, and from Latin-1.

    Other encodings can take minutes for a short text.
    """
    if not (calls := sum(1 for _ in re.finditer(re.escape(ENCODE), content))):
        return True
    with contextlib.suppress(Exception):  # whatever is not understood is refused
        return calls == sum(_plain_calls(*found) for found in _pickles(path, content))  # guard: S4 encode
    return False


def _pickles(path: Path, content: Any) -> Iterator[tuple[bytes, int]]:
    """The pickles of a file in front of its values: bytes, and how many follow each other there."""
    if content[:2] != b"PK":
        yield content[:MAX_BYTES_PICKLE], 5
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith("data.pkl") and member.file_size <= MAX_BYTES_PICKLE:
                yield archive.read(member), 1


def _plain_calls(content: bytes, pickles: int) -> int:
    """The number of times that pickles name the encoder; ValueError if they use it for more than short bytes."""
    stream, named, left = io.BytesIO(content), 0, MAX_ENCODED
    for _ in range(pickles):
        memo: dict[Any, Any] = {}
        top: Any = None  # of the stack, where it is the encoder or a text
        call: list[tuple[str, Any]] = []  # the encoder and what follows it
        for code, argument, _ in pickletools.genops(stream):
            if "PUT" in code.name:
                memo[argument] = top
                continue
            top = argument if code.name == "BINUNICODE" else memo[argument] if "GET" in code.name else None
            if code.name == "GLOBAL" and argument == "_codecs encode":
                top, named = ENCODE, named + 1
            if call or top is ENCODE:
                call.append((code.name, top))
            if len(call) == 5:
                (_, encoder), (_, text), (_, encoding), (fourth, _), (fifth, _) = call
                if encoder is not ENCODE or (encoding, fourth, fifth) != ("latin1", "TUPLE2", "REDUCE"):
                    raise ValueError("it makes bytes in another way")
                left -= len(text)
                call.clear()
        if call or left < 0:
            raise ValueError("it makes too many bytes")
    return named
