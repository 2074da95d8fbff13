"""Writing and reading files that must not be lost, damaged or hostile.

One way to write (`atomic_write`, and `safe_save` on top of it), one way to read tensors (`safe_load`),
one way to fetch (`download`). Nothing else in the package touches weights or the network.
"""

import contextlib
import csv
import hashlib
import http.client
import io
import json
import math
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError, ResourceError, printable

HASH_KEY = "sha256"
MAX_HEADER_BYTES = 16 * 1024**2
# guard: C07
SAFE_TORCH = (2, 10)  # older ones could be made to run code in spite of weights_only


@contextlib.contextmanager
def atomic_write(path: Path, previous: Path | None = None, size: int = 0) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` complete, or not at all.

    The order is write, fsync, rename, fsync of the folder: after a power cut there is the old file or the
    new one, never a mixture. On an error the temporary file is removed and the old file stays.

    Args:
        path: The file.
        previous: Where the file of before goes once the new one is complete. A kill between the two renames
            leaves it there and nothing under `path`.
        size: Bytes to come where that is known, for the error's text.

    Raises:
        ResourceError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())  # guard: C19
        # NamedTemporaryFile makes private files; a result should be as readable as any other new file.
        temporary.chmod(0o666 & ~_umask())
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        needed = f" ({size:,} bytes)" if size else ""
        raise ResourceError(
            f"cannot write {printable(path)}{needed}: {error.strerror or error}",
            "free space or choose another folder",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the disk may have become read-only or gone
                temporary.unlink(missing_ok=True)  # guard: C17 write


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # guard: D25 files


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, where NaN and the infinities, which JSON has not, are null."""
    return json.dumps(_without_infinities(value), indent=indent, ensure_ascii=True, allow_nan=False)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows with the keys of the first as header, atomically."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


def safe_save(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, Any], previous: Path | None = None
) -> None:
    """Writes tensors with JSON metadata as one .safetensors file, atomically, with a checksum inside.

    Args:
        tensors: Name to tensor, any device; stored contiguous.
        path: Target file; replaced only once the new one is complete.
        metadata: Name to anything that JSON can hold.
        previous: Where the file of before is kept; by default it goes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    texts[HASH_KEY] = json.dumps(_checksum(tensors, texts))
    payload = safetensors.torch.save(tensors, texts)
    with atomic_write(path, previous, len(payload)) as file:
        file.write(payload)


def safe_load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a .safetensors file of ours or of others, or a foreign .pth, and never runs code from it.

    Args:
        path: The file; what it is gets decided by its first bytes, not by its name.

    Returns:
        Tensors by name (a .pth's `state_dict` or `model` entry unwrapped, `module.` and `_orig_mod.`
        stripped), and the metadata (empty for a foreign file).

    Raises:
        ModelFileError: missing, damaged, of another kind, or holding more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise ModelFileError(f"cannot read weights from {printable(path)}: {kind}", "name a weights file")
    with path.open("rb") as file:
        start = file.read(16)
    if len(start) < 16:  # guard: C01
        raise ModelFileError(f"{printable(path)} is empty or cut off", "use a complete weights file")
    if start[8:9] == b"{":
        return _load_safetensors(path, int.from_bytes(start[:8], "little"))
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _load_pth(path), {}
    raise ModelFileError(
        f"{printable(path)} is {_describe(start)}, expected .safetensors or .pth weights",
        "give a weights file of one of those kinds",
    )


def _load_safetensors(path: Path, header_bytes: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if header_bytes > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise ModelFileError(
            f"{printable(path)} is damaged: its header says {header_bytes} bytes", "use another copy"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise ModelFileError(
            f"{printable(path)} is damaged: {_one_line(error)}", "use another copy"
        ) from error
    if HASH_KEY not in texts:
        return tensors, {}  # a foreign file, or one whose mark is damaged: its metadata are not trusted
    stated = texts.pop(HASH_KEY)
    if stated != json.dumps(_checksum(tensors, texts)):  # guard: C03
        raise ModelFileError(f"{printable(path)} is damaged: its checksum does not match", "use another copy")
    return tensors, {key: json.loads(value) for key, value in texts.items()}


def _load_pth(path: Path) -> dict[str, Tensor]:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise ModelFileError(
            f"torch {torch.__version__} cannot read {printable(path)} safely", "pip install -U torch"
        )
    if kind := _other_zip(path):  # guard: C08
        raise ModelFileError(
            f"{printable(path)} is {kind}, expected .safetensors or .pth weights", "save those"
        )
    try:
        # weights_only is passed explicitly, so that no environment variable can turn it off.
        content = torch.load(path, map_location="cpu", weights_only=True)  # guard: C04, C05, C06
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... on damaged files
        if "weights_only" in str(error):
            # torch's own text goes on to recommend the unsafe loader; only the culprit's name is passed on.
            culprit = re.search(r"GLOBAL (\S+)", str(error))
            raise ModelFileError(
                f"{printable(path)} holds more than tensors and is not loaded"
                + (f" ({culprit[1]})" if culprit else ""),
                "ask for the weights as .safetensors",
            ) from None
        raise ModelFileError(
            f"{printable(path)} is damaged: {_one_line(error)}", "use another copy"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelFileError(
            f"{printable(path)} holds no state dict of tensors", "save model.state_dict() there"
        )
    # guard: C11
    return {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in content.items()}


def _other_zip(path: Path) -> str:
    """What a zip archive is, if not one of `torch.save`; empty for those, and for what is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    names = {member.filename.rpartition("/")[2] for member in members}
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # guard: C09
        return "a compressed archive"  # torch writes none: a small file could fill the memory
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


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_digest(path: Path, digest: str, algorithm: str = "sha256") -> None:
    """Sees whether a file that was fetched earlier is still what it was.

    Raises:
        ResourceError: it is not.
    """
    found = file_digest(path, algorithm)
    if not found.startswith(digest):  # guard: R17
        what = f"{printable(path)} is damaged: its {algorithm} is {found}, expected {digest}"
        raise ResourceError(what, "delete it, so that it is fetched anew")


def download(
    url: str,
    path: Path,
    digest: str,
    algorithm: str = "sha256",
    ways_on: str = "check the network",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Fetches `url` to `path`, continuing a partial download, and checks it before it takes its name.

    Args:
        url: http(s) or file address.
        path: Where the verified file goes; an existing file is checked and returned.
        digest: Expected hexadecimal digest, or its start where the source states no more.
        algorithm: Of the digest, as `hashlib` calls it.
        ways_on: What a user without network can do, for the error's text.
        progress: Called with bytes so far and bytes in all (0 where unknown).

    Raises:
        ResourceError: no network, a refused request, a cut download or a wrong checksum. A cut download
            leaves `<name>.part` for the next try; a wrong one leaves nothing.
    """
    path = Path(path)
    if path.exists():  # guard: H05
        check_digest(path, digest, algorithm)
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ResourceError(
            f"cannot fetch {url} to {printable(path)}: {_one_line(reason)}", ways_on
        ) from error
    found = file_digest(part, algorithm)
    if not found.startswith(digest):  # guard: D38 checksum, H02
        part.unlink()
        raise ResourceError(
            f"what came from {url} has {algorithm} {found}, expected {digest}; it was deleted", ways_on
        )
    os.replace(part, path)
    _fsync_folder(path.parent)
    return path


def fetch_bytes(url: str, most: int = 64 << 20, timeout: float = 30) -> bytes:
    """What an http(s) address answers, for content that needs no checksum because it is looked at at once.

    Args:
        url: The address.
        most: Bytes from which on it is refused.
        timeout: Seconds without an answer.

    Raises:
        ResourceError: no network, a refused request, or too much.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            content: bytes = response.read(most + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ResourceError(
            f"cannot fetch {printable(url)}: {_one_line(reason)}", "check the address and the network"
        ) from error
    if len(content) > most:
        raise ResourceError(f"{printable(url)} holds more than {most >> 20} MB", "give a smaller photo")
    return content


def _fetch(url: str, part: Path, progress: Callable[[int, int], None] | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing left to send: the part is complete, the checksum decides
            return
        raise
    with response:
        resumed = getattr(response, "status", None) == 206  # a server may ignore Range and start over
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    if total and have < total:  # guard: D38 cut
        raise OSError(f"connection closed after {have} of {total} bytes")


def cache_folder() -> Path:
    """Where downloads are kept: `$FLOWERS_TORCH_CACHE`, else `flowers_torch` in the XDG cache folder."""
    if folder := os.environ.get("FLOWERS_TORCH_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowers_torch"


def _describe(start: bytes) -> str:
    kinds = {
        b"\x89HDF\r\n": "an HDF5 file",
        b"\x1f\x8b": "a gzip archive",
        b"\x08": "perhaps an ONNX file",
        b"<": "HTML or XML",
        b"version https": "a Git LFS pointer",
    }
    return next((name for magic, name in kinds.items() if start.startswith(magic)), "of an unknown kind")


def _one_line(error: object) -> str:
    return printable(" ".join(str(error).split()), limit=300)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
