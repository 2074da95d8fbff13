"""The header of a WebP file, read before Pillow allocates what it claims."""


def frame_size(start: bytes) -> tuple[int, int] | None:
    """Width and height that the start of a file claims: extended, lossless or lossy; None for another form."""
    kind, sides = start[12:16], int.from_bytes(start[21:25], "little")
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if kind == b"VP8L":
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF
    return None
