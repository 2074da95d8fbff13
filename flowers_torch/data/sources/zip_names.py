"""Names in zip archives of any system: those without the mark of UTF-8 are in the code page of the computer."""

import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence

from flowers_torch.data.sources.rows import listed

UTF8_FLAG = 0x800
UNICODE_PATH = 0x7075  # extra field of Info-ZIP and 7-Zip
CODE_PAGES = ("cp437", "cp850", "cp1252", "shift_jis", "gb2312", "big5", "euc_kr", "cp866")
# Alphabets that one word holds together.
SCRIPTS = ({"LATIN"}, {"CYRILLIC"}, {"GREEK"}, {"CJK", "HIRAGANA", "KATAKANA"}, {"HANGUL", "CJK"})


def zip_names(members: Sequence[zipfile.ZipInfo]) -> tuple[list[str], str]:
    """The names of the members, and a note where their encoding is not certain or was found out.

    It is certain if the archive says so, if all names are UTF-8, or if only one code page gives words.
    """
    names = [member.filename for member in members]
    unclear = []
    for index, member in enumerate(members):
        if not member.flag_bits & UTF8_FLAG and not member.orig_filename.isascii():
            raw = member.orig_filename.encode("cp437")  # as `zipfile` has decoded it
            if stored := _unicode_path(member.extra, raw):
                names[index] = stored
            else:
                unclear.append((index, raw))
    if not unclear:
        return names, ""
    found: dict[tuple[str, ...], str] = {}
    for encoding in ("utf-8", *CODE_PAGES):
        try:
            decoded = tuple(raw.decode(encoding) for _, raw in unclear)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8" or all(map(_is_words, decoded)):
            found.setdefault(decoded, encoding)
        if encoding == "utf-8":
            break
    if len(found) != 1:
        example = [names[index] for index, _ in unclear]
        shown = listed(sorted({name.split("/")[-2] if "/" in name else name for name in example}), limit=3)
        return names, f"names in the archive are in an unknown encoding and are shown as {shown}: unpack it yourself"
    ((decoded, encoding),) = found.items()
    for (index, _), name in zip(unclear, decoded, strict=True):
        names[index] = name.replace("\\", "/")
    return names, "" if encoding == "utf-8" else f"names in the archive are read as {encoding}, the only one with words"


def _unicode_path(extra: bytes, raw: bytes) -> str:
    """The name in the extra field, if it belongs to this name; else empty."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(field) > 5 and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return field[5:].decode("utf-8", "replace")
    return ""


def _is_words(name: str) -> bool:
    """Whether all that is not ASCII are letters, and the letters of each word are of one alphabet."""
    if not all(c.isascii() or unicodedata.category(c)[0] in "LM" or c in "\u3000\u3005\u30fb\u30fc" for c in name):
        return False
    for word in re.findall(r"[^\W\d_]+", name):
        letters = [unicodedata.name(c, "?").split()[0] for c in word]
        if "HALFWIDTH" in letters or not any(set(letters) <= script for script in SCRIPTS):
            return False
        upper = [c.isupper() for c in word]
        if any(upper[1:]) and not all(upper) and not word.isascii():  # of another code page, such as LöwenzÄhn
            return False
    return True
