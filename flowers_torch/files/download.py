"""Downloads that resume and whose checksum is verified before they get their name."""

import contextlib
import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from flowers_torch.errors import ResourceError, one_line, printable
from flowers_torch.files.cache import CACHE_FIX
from flowers_torch.files.system import fsync_folder, replace

NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError)
MAX_BYTES = 64 << 30  # of a download; a server may never end


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_digest(path: Path, digest: str, algorithm: str = "sha256") -> None:
    """Raises ResourceError if a file does not have this digest."""
    found = file_digest(path, algorithm)
    if not found.startswith(digest):  # guard: R17
        what = f"{printable(path)} is damaged: its {algorithm} is {found}, expected {digest}"
        raise ResourceError(what, "delete it to download it again")


def download(
    url: str,
    path: Path,
    digest: str,
    algorithm: str = "sha256",
    ways_on: str = "check the network",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Downloads a file and verifies it; a partial download is resumed, an existing file only verified.

    Args:
        url: http(s) or file URL.
        digest: Expected hexadecimal digest, or the start of it, by an `algorithm` of `hashlib`.
        ways_on: The fix in the error message, for a user without network.
        progress: Called with bytes so far and bytes in all (0 if unknown).

    Raises:
        ResourceError: no network, a failed request, an incomplete download or a wrong checksum. An incomplete
            download leaves `<name>.part` to resume from.
    """
    try:
        if not path.exists():  # guard: H05
            path.parent.mkdir(parents=True, exist_ok=True)
            with _part_of(path) as part:
                if not path.exists():  # guard: S3 again
                    _fetch(url, part, progress)
                    found = file_digest(part, algorithm)
                    if not found.startswith(digest):  # guard: D38 checksum, H02
                        part.unlink()
                        what = f"the download from {printable(url)} has {algorithm} {found}, expected {digest}"
                        raise ResourceError(f"{what}, and was deleted", ways_on)
                    replace(part, path)
                    fsync_folder(path.parent)
                    return path
        check_digest(path, digest, algorithm)
        return path
    except (OSError, *NETWORK_ERRORS) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        local = not isinstance(error, NETWORK_ERRORS) and error.errno is not None
        what = f"cannot fetch {printable(url)} to {printable(path)}: {one_line(reason)}"
        raise ResourceError(what, CACHE_FIX if local else ways_on) from error


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """The file that a download fills, while no other process does. Another process that wants it too waits."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire()  # guard: S3
    except (OSError, NotImplementedError):  # a file system without locks; nothing is resumed there
        part = path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.part")
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
        return
    try:
        yield path.with_name(path.name + ".part")
    finally:
        with contextlib.suppress(OSError):  # Windows keeps an open file, which `release` removes there
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def fetch_bytes(url: str, max_bytes: int = 64 << 20, timeout: float = 30) -> bytes:
    """The content of an http(s) URL, without a checksum. `timeout` is in seconds without a response.

    Raises:
        ResourceError: no network, a failed request, or too many bytes.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            content: bytes = response.read(max_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        what = f"cannot fetch {printable(url)}: {one_line(reason)}"
        raise ResourceError(what, "check the URL and the network") from error
    if len(content) > max_bytes:
        raise ResourceError(f"{printable(url)} holds more than {max_bytes >> 20} MB", "give a smaller photo")
    return content


def _fetch(url: str, part: Path, progress: Callable[[int, int], None] | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is complete; the checksum decides
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
                if have > MAX_BYTES:
                    raise ConnectionError(f"it has more than {MAX_BYTES >> 30} GiB")
                if progress is not None:
                    progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    if total and have < total:  # guard: D38 cut
        raise ConnectionError(f"connection closed after {have} of {total} bytes")
