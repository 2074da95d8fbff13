"""Saving and loading tensors with JSON metadata. Loading never runs code from a file."""

import contextlib
import hashlib
import json
import mmap
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files.atomic import atomic_write
from flowers_torch.files.pickles import IS_DICT, Placeholder, holds_only_short_bytes, placeholders
from flowers_torch.files.reading import plausible_bytes, reading, require_regular, zip_members

HASH_KEY = "sha256"
MAX_HEADER_BYTES = 16 * 1024**2
MAX_TENSORS = 30_000  # a checkpoint has about six for each parameter
MAX_DEPTH = 10  # of dicts in a checkpoint
MAX_ATTEMPTS = 6  # at a file with classes of others
MAX_LISTS = 200_000  # and tables in the metadata; each takes 56 bytes or more
# Parts of a checkpoint that are not a network's weights, though they may hold tensors of equal shapes
NOT_WEIGHTS = re.compile(
    r"(.*_)?(opt|optim\w*|sched\w*|scaler|callbacks|loops|rng|metrics?|loss\w*|criterion|hyper_parameters)(_.*)?", re.I
)
DTYPES = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"}
OTHER_FILES = {  # by their first bytes
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"\x08": "perhaps an ONNX file",
    b"<": "HTML or XML",
    b"version https": "a Git LFS pointer",
}
# guard: C07
SAFE_TORCH = (2, 10)  # older versions can run code in spite of weights_only


def safe_save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a .safetensors file with a checksum, atomically.

    `metadata` are JSON values by name. `previous` is the new path of the old file; None removes it.
    """
    tensors = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    texts[HASH_KEY] = json.dumps(_checksum(tensors, texts))
    payload = safetensors.torch.save(tensors, texts)
    with atomic_write(path, previous, len(payload)) as file:
        file.write(payload)


class TensorFile(NamedTuple):
    """The content of a weights file."""

    groups: dict[str, dict[str, Tensor]]  # dicts of tensors by their place, such as "state_dict"; "" is the file itself
    metadata: dict[str, Any]  # of a .safetensors file with our checksum
    others: frozenset[str] = frozenset()  # what else a .pth file names at its top


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory, such as those of a layer with two names; safetensors refuses them."""
    first: dict[int, str] = {}
    return {
        name: tensor if first.setdefault(tensor.untyped_storage().data_ptr(), name) == name else tensor.clone()
        for name, tensor in tensors.items()
    }


def safe_load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a .safetensors or .pth file. Its first bytes, not its name, tell which.

    Returns:
        Tensors by name (of a .pth file its largest dict of tensors), and the metadata, which are empty for a file
        without our checksum.

    Raises:
        ModelFileError: the file is missing, damaged, of another kind, or has other objects than plain tensors.
    """
    found = load_groups(path)
    return max(found.groups.values(), key=len), found.metadata


def load_groups(path: Path) -> TensorFile:
    """All dicts of tensors in a file, at least one; otherwise as `safe_load`."""
    size = require_regular(path, ModelFileError)
    with reading(path, "a valid weights file", ModelFileError):  # guard: S8 weights
        with open(path, "rb") as file:
            start = file.read(16)
        if len(start) < 16:  # guard: C01
            raise ValueError("it is empty or incomplete")
        if start[8:9] == b"{":
            tensors, metadata = _load_safetensors(path, int.from_bytes(start[:8], "little"), size)
            found = TensorFile({"": tensors}, metadata)
        elif start[:2] == b"PK" or start[:1] == b"\x80":
            found = _load_pth(path)
        else:
            kind = next((name for magic, name in OTHER_FILES.items() if start.startswith(magic)), "of an unknown kind")
            what = f"{printable(path)} is {kind}, expected .safetensors or .pth weights"
            raise ModelFileError(what, "give a weights file of one of those kinds")
        _require_plain(found.groups, size)
    return found


def _load_safetensors(path: Path, header_bytes: int, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its header has {header_bytes:,} bytes")
    with safetensors.safe_open(path, framework="pt") as file:
        texts, names = dict(file.metadata() or {}), list(file.keys())
        # Copies, because a file that is still mapped cannot be replaced on Windows.
        tensors = {name: file.get_tensor(name).clone() for name in names}
    if HASH_KEY not in texts:
        return tensors, {}  # without the checksum the metadata are not trusted
    stated = texts.pop(HASH_KEY)
    if stated != json.dumps(_checksum(tensors, texts)):  # guard: C03
        raise ValueError("its checksum does not match")
    if sum(value.count("[") + value.count("{") for value in texts.values()) > MAX_LISTS:  # guard: S4 lists
        raise ValueError(f"its metadata hold more than {MAX_LISTS:,} lists")
    return tensors, {key: json.loads(value) for key, value in texts.items()}


def _load_pth(path: Path) -> TensorFile:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise ModelFileError(f"torch {torch.__version__} cannot read {printable(path)} safely", "pip install -U torch")
    if kind := _other_zip(path):  # guard: C08
        raise ModelFileError(f"{printable(path)} is {kind}, expected .safetensors or .pth weights", "save those")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # guard: S4 pickle
        if content.find(b"\nbytearray\n") >= 0 or not holds_only_short_bytes(path, content):
            raise ValueError("it holds bytes, which weights do not need")
        loaded = _unpickled(path, content)
    if isinstance(loaded, Placeholder):  # a whole network
        loaded = loaded.network_state()
    groups = dict(_groups(loaded, "", set()))
    if not groups:
        raise ModelFileError(f"{printable(path)} has no state dict of tensors", "save model.state_dict() there")
    return TensorFile(groups, {}, frozenset(key for key in loaded if isinstance(key, str)))


def _unpickled(path: Path, content: Any) -> Any:
    """The objects of a .pth file, with a placeholder for each of a class that is not torch's or Python's own."""
    dicts: set[str] = set()  # classes found to be filled like a dict
    for attempt in range(MAX_ATTEMPTS):
        stand_ins = placeholders(content, dicts) if attempt else contextlib.nullcontext()
        try:
            with warnings.catch_warnings(action="ignore"), stand_ins:  # guard: S8 quiet
                # weights_only is passed explicitly, so that no environment variable can turn it off.
                return torch.load(path, map_location="cpu", weights_only=True)  # guard: C04, C05, C06
        except Exception as error:
            if "weights_only" not in str(error):
                raise
            # torch's message recommends the unsafe loader, so only the name of the object is used.
            found, like_dict = re.search(r"GLOBAL (\S+)", str(error)), IS_DICT.search(str(error))
        if attempt and not like_dict:
            break
        dicts |= {like_dict[1]} if like_dict else set()
    named = f" ({printable(found[1])})" if found else ""
    what = f"{printable(path)} holds more than tensors and is not loaded{named}"
    raise ModelFileError(what, "save model.state_dict() alone, or ask for the weights as .safetensors")


def _groups(content: Any, place: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors in a checkpoint with their places, without those of the optimizer and the like."""
    if id(content) in seen or place.count(".") > MAX_DEPTH:
        return
    seen.add(id(content))
    content = content.network_state() if isinstance(content, Placeholder) else content
    if not isinstance(content, dict):
        return
    if tensors := {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
    }:
        yield place, tensors
    for name, value in content.items():
        if isinstance(name, str) and not NOT_WEIGHTS.fullmatch(name) and isinstance(value, dict | Placeholder):
            yield from _groups(value, f"{place}.{name}".removeprefix("."), seen)


def _require_plain(groups: dict[str, dict[str, Tensor]], size: int) -> None:
    """Raises ValueError for tensors that are not dense, of an odd type, or larger than the file that holds them."""
    tensors = [(name, tensor) for group in groups.values() for name, tensor in group.items()]
    if len(tensors) > MAX_TENSORS:  # guard: S4 groups
        raise ValueError(f"it holds {len(tensors):,} tensors")
    for name, tensor in tensors:
        kind = str(tensor.dtype).removeprefix("torch.")
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        # guard: S8 tensors
        if not is_dense or tensor.is_quantized or kind not in DTYPES:
            kind = kind if is_dense else f"{tensor.layout} on {tensor.device}".removeprefix("torch.")
            raise ValueError(f"{printable(name, 80)} is a tensor of the kind {kind}")
    if sum(tensor.nbytes for _, tensor in tensors) > plausible_bytes(size):  # guard: S8 expanded
        raise ValueError("it claims to hold much more than its bytes")


def _other_zip(path: Path) -> str:
    """The kind of a zip archive that `torch.save` did not write; empty for files of `torch.save`."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # an older file of `torch.save`
            return ""
    members = zip_members(path, ModelFileError)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):  # guard: C09
        return "a compressed archive"  # torch.save does not compress, and a small file could fill the memory
    names = {name.rpartition("/")[2] for name in members}
    if "constants.pkl" in names:
        return "a TorchScript program"
    if "archive_format" in names:
        return "an exported program (.pt2)"
    return "" if "data.pkl" in names else "a zip archive without weights"


def _checksum(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
