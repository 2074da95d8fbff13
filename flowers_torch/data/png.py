"""The chunks of a PNG file: checksums, text that Pillow refuses, and color codes."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from flowers_torch.errors import printable

TEXT = (b"tEXt", b"zTXt", b"iTXt")
# Pillow calls a PNG damaged if a text or its profile has more bytes, uncompressed, or all texts have 64 times as many.
MAX_TEXT = 1 << 20
MAX_TEXTS = 16 << 20
MAX_CHUNKS = 10_000  # in front of the pixels, or behind them


def check_chunks(file: IO[bytes]) -> None:
    """Checks the CRCs and the end chunk of a PNG; Pillow ignores both."""
    position = file.tell()
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it ends before its end chunk")
        length, kind = struct.unpack(">I4s", head)
        crc = zlib.crc32(kind)
        while length and (data := file.read(min(length, 1 << 20))):  # the stated length may be false
            crc, length = zlib.crc32(data, crc), length - len(data)
        if file.read(4) != struct.pack(">I", crc):
            raise ValueError(f"checksum of its {printable(kind.decode('latin-1'))} chunk does not match")
    file.seek(position)


def without_large_text(file: IO[bytes]) -> IO[bytes]:
    """The file, or a copy in memory without the texts and the profile that Pillow would refuse the image for."""
    total, dropped = 0, []
    for kind, start, length in _chunks(file):
        if kind in TEXT or kind == b"iCCP":
            size = _uncompressed(file, kind, start, length)
            total += size
            if size > MAX_TEXT or total > MAX_TEXTS:  # guard: D11 text
                dropped.append((start - 8, start + length + 4))
    if not dropped:
        return file
    copy, end = io.BytesIO(), 0
    for first, last in dropped:
        file.seek(end)
        copy.write(file.read(first - end))
        end = last
    file.seek(end)
    copy.write(file.read())
    return copy


def color_codes(file: IO[bytes]) -> tuple[int, int] | None:
    """Primaries and transfer function of a cICP chunk, if there is one."""
    for kind, start, length in _chunks(file):
        if kind == b"cICP" and length == 4:
            file.seek(start)
            codes = file.read(4)
            return (codes[0], codes[1]) if len(codes) == 4 and codes[2] == 0 else None
        if kind == b"IDAT":
            return None
    return None


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of each chunk; as many as there are in a file that is cut."""
    start, kind, other = 8, b"", 0
    while kind != b"IEND" and other < MAX_CHUNKS:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, start + 8, length
        start += length + 12
        other += kind not in (b"IDAT", b"fdAT")


def _uncompressed(file: IO[bytes], kind: bytes, start: int, length: int) -> int:
    """Bytes of a chunk's text or profile; about one more than the limit where there are more."""
    if kind == b"tEXt" or length > MAX_TEXT:
        return length
    file.seek(start)
    _, _, content = file.read(length).partition(b"\0")
    if kind == b"iTXt":
        if content[:1] != b"\1":
            return length
        content = content[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated keyword
        content = b"\0" + content
    try:
        return len(zlib.decompressobj().decompress(content[1:], MAX_TEXT + 1))
    except zlib.error:
        return length
