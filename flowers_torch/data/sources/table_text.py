"""The rows of a table as spreadsheets, databases and people write them: any common encoding and delimiter."""

import codecs
import csv
import functools
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flowers_torch.data.images import is_image_name
from flowers_torch.errors import DataError, printable
from flowers_torch.files.reading import plain_cell, read_bytes

MAX_BYTES = 256 << 20  # rows take several times as much
MAX_COLUMNS = 10_000
MANY_VALUES = 21  # of a column; one with so many is not a split
DELIMITERS = ",;\t|"
SPREADSHEETS = {".xlsx", ".xls", ".xlsm", ".ods", ".numbers"}
OTHER_TABLES = {".parquet", ".feather", ".arrow", ".jsonl", ".json", ".ndjson", ".pkl", ".xml"}
SAVE_FIX = "save it as a CSV file with the columns file,label"


class TableRow(dict[str, str]):
    """The cells of a row by column; those that are missing at its end are empty and take no memory."""

    __slots__ = ()

    def __missing__(self, column: str) -> str:
        return ""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    path: Path
    header: list[str]
    rows: list[tuple[int, TableRow]]  # with the number of the line
    notes: list[str] = field(default_factory=list)

    def values(self, column: str) -> list[str]:
        """The cells of a column."""
        return [row[column] for _, row in self.rows]

    @functools.cached_property
    def distinct(self) -> dict[str, set[str]]:
        """The first values of each column, at most `MANY_VALUES`; one pass over the cells."""
        found: dict[str, set[str]] = {name: set() for name in self.header}
        cells: Counter[str] = Counter()
        for _, row in self.rows:
            cells.update(row.keys())
            for name, value in row.items():
                if len(found[name]) < MANY_VALUES:
                    found[name].add(value)
        return {name: values | {""} if cells[name] < len(self.rows) else values for name, values in found.items()}

    def wrong(self, line: int, what: str) -> DataError:
        """The error for a line."""
        return DataError(f"{printable(self.path)}, line {line}: {what}", "correct this line")


def read_rows(path: Path) -> Table:
    """Reads a table; its first line names the columns.

    Raises:
        DataError: a spreadsheet or another format, no rows, no header, two columns of one name, or invalid quotes.
    """
    content = read_bytes(path, "a table of labels", DataError, MAX_BYTES)
    text, notes = _decode(content, path)
    lines_before = 0
    if declared := re.match(r'"?sep=([,;\t|])"?\r?\n', text):  # a line that Excel understands
        text, lines_before = text[declared.end() :], 1
    first = re.sub(r'"[^"\n]*"', "", text.split("\n", 1)[0])
    delimiter = declared[1] if declared else max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, rows = list[str](), list[tuple[int, TableRow]]()
    try:
        for cells in reader:
            if not header:
                header = cells
            elif cells:
                row = TableRow(zip(header, map(plain_cell, cells), strict=False))
                rows.append((reader.line_num + lines_before, row))
    except csv.Error as error:
        what = f"{printable(path)}, line {reader.line_num + lines_before}: {error}"
        raise DataError(what, "correct this line") from error
    if any(is_image_name(cell.strip()) for cell in header):
        what = f"{printable(path)} has no header: its first line is {printable(delimiter.join(header), 60)}"
        raise DataError(what, "write the names of the columns into the first line, such as file,label")
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{printable(path)} has more than {MAX_COLUMNS:,} columns", SAVE_FIX)
    if not rows:
        raise DataError(f"{printable(path)} lists no photos", "add lines of file,label")
    if double := [name for name, count in Counter(header).items() if count > 1 and name.strip()]:
        raise DataError(f"{printable(path)} has two columns {printable(double[0])}", "rename or remove one")
    return Table(path, header, rows, notes)


def _decode(content: bytes, path: Path) -> tuple[str, list[str]]:
    """The text, and a note where its encoding is not certain."""
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise spreadsheet(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace"), []
    if b"\0" in content[:2] and len(content) % 2 == 0:  # UTF-16 without a mark
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", "replace"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("utf-8-sig", "surrogateescape"), []
    words = list(dict.fromkeys(re.findall(r"[^\W\d_]*[^\W\d_a-zA-Z][^\W\d_]*", text)))[:3]
    shown = f", which gives {printable(', '.join(words), 100)}" if words else ""
    return text, [f"{printable(path)} is not UTF-8; it is read as Windows-1252, as Excel writes it{shown}"]


def spreadsheet(path: Path) -> DataError:
    """The error for a table in another format than CSV."""
    return DataError(f"{printable(path)} is a table in another format than CSV", SAVE_FIX)
