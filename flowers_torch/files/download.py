"""Downloads that resume, and that take their name only once their checksum is right."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from flowers_torch.errors import ResourceError, one_line, printable
from flowers_torch.files.atomic import fsync_folder


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
            f"cannot fetch {url} to {printable(path)}: {one_line(reason)}", ways_on
        ) from error
    found = file_digest(part, algorithm)
    if not found.startswith(digest):  # guard: D38 checksum, H02
        part.unlink()
        raise ResourceError(
            f"what came from {url} has {algorithm} {found}, expected {digest}; it was deleted", ways_on
        )
    os.replace(part, path)
    fsync_folder(path.parent)
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
            f"cannot fetch {printable(url)}: {one_line(reason)}", "check the address and the network"
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
