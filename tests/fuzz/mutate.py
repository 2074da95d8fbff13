"""Mutations of bytes, of JSON values and of texts, drawn from a seeded generator."""

import json
import random
import struct
from typing import Any

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
PAINT = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r"  # what a terminal would act on
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, -1e308, float("nan"), float("inf")),
    *("", "x", PAINT, "../../outside", "/etc/passwd", "a" * 100_000, "\0", "\ud800", "None", "0", "1e400"),
    *([], {}, [[]], [None], {"": None}, [0] * 5000, ["x"] * 5000, {"a": {"b": {"c": []}}}),
)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to eight changes: flipped bits, cuts, extreme integers, repeated, removed, swapped or foreign ranges."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        kind, at = draw.randrange(8), draw.randrange(min(len(data), draw.choice((64, 512, len(data)))))
        size = draw.choice((1, 2, 4, 8, 64, 1024))
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
            data[at : at + width] = (draw.choice(EXTREMES) % 256**width).to_bytes(width, order)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + size]
        elif kind == 5:
            data[at:at] = data[at : at + size] * draw.choice((1, 2, 50))
        elif kind == 6:
            other = draw.randrange(len(data))
            data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
        else:
            data[at:at] = draw.choice((b"\0" * size, b"\xff" * size, b"\x1b[2J", b"GIF89a", b"PK\x03\x04", b"%PDF"))
    return bytes(data)


def mutate_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one or two of its places replaced, removed, wrapped, nested deeply or multiplied."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        stack = [value]
        while stack:
            inner = stack.pop()
            keys = inner.keys() if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            for key in keys:
                places.append((inner, key))
                stack.append(inner[key])
        if not places:
            return draw.choice(VALUES)
        holder, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind <= 2:
            holder[key] = draw.choice(VALUES)
        elif kind == 3 and isinstance(holder, dict):
            holder[draw.choice((PAINT, "extra", "checkpoint_path", "pretrained_cfg", ""))] = holder.pop(key)
        elif kind == 4:
            holder[key] = [holder[key]]
        else:
            deep: Any = holder[key]
            for _ in range(draw.choice((3, 200))):
                deep = [deep]
            holder[key] = deep
    return value


def to_text(value: Any) -> str:
    """JSON with NaN, infinities and lone surrogates as Python writes them."""
    return json.dumps(value)


def mutate_text(text: str, draw: random.Random) -> bytes:
    """A table, list or TOML file with mutated bytes, cells, lines, nesting or encodings."""
    kind = draw.randrange(10)
    lines = text.splitlines(keepends=True) or [""]
    at = draw.randrange(len(lines))
    if kind <= 2:
        return mutate_bytes(text.encode(), draw)
    if kind == 3:
        lines[at] = draw.choice((PAINT, "9" * 5000 + "\n", "x = " + "[" * 100_000 + "\n", "\0\n", '"\n', "=1+1\n"))
    elif kind == 4:
        lines[at] = lines[at].replace(draw.choice((",", "=", '"', "\n")), draw.choice(("", ",,", "\0", PAINT, "\n\n")))
    elif kind == 5:
        lines[at:at] = lines * draw.choice((1, 3, 300))
    elif kind == 6:
        lines[at] = lines[at].rstrip("\n") + "," + "y" * 200_000 + "\n"
    elif kind == 7:
        words = lines[at].split(",")
        words[draw.randrange(len(words))] = draw.choice((PAINT, "../../outside/precious", "/dev/zero", "9" * 5000, ""))
        lines[at] = ",".join(words)
    elif kind == 8:
        return "".join(lines).encode(draw.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")))
    else:
        return b""
    return "".join(lines).encode("utf-8", "surrogatepass")


def tar_header(name: bytes, size: int, kind: bytes = b"0", link: bytes = b"", sizes: bytes = b"") -> bytes:
    """A header block of a tar archive; `sizes` replaces the field of the size."""
    field = sizes or b"%011o\0" % size
    head = name.ljust(100, b"\0")[:100] + b"0000644\0" + b"0000000\0" * 2 + field.ljust(12, b"\0")[:12]
    head += b"00000000000\0" + b" " * 8 + kind + link.ljust(100, b"\0")[:100] + b"ustar\x0000"
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def safetensors_bytes(header: Any, payload: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header, whose length may be stated falsely."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload
