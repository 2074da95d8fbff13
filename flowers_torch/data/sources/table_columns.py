"""Which column of a table holds the file, the label, the split, the group or the exclusion; what the rest is for."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowers_torch.data.dataset import COLUMN_MARK
from flowers_torch.data.sources.rows import listed, splits_of_values
from flowers_torch.data.sources.table_text import MANY_VALUES, Table
from flowers_torch.errors import DataError, plural, printable

# Names of columns; those of a later line count if there is none of an earlier line.
COLUMNS = {
    "file": (
        "file filename file_name path filepath file_path image image_path photo",
        "image_id img_id photo_id image_name imagename img img_name img_path image_file file_id fname",
        "id name",
    ),
    "label": (
        "label class class_name category target species",
        "labels label_name classname class_label category_name breed dx diagnosis disease tag genus variety cultivar y",
        "class_id label_id category_id",
    ),
    "split": ("split part subset set partition",),
    "group": ("group group_id",),
    "exclude": ("exclude excluded",),
}
FLAGS = {"is_valid": "val", "is_val": "val", "is_validation": "val", "is_test": "test"}  # of fastai: true or false
TRUE, FALSE = {"true", "1", "1.0", "yes", "t"}, {"false", "0", "0.0", "no", "f", ""}
NEAR = ("file", "label", "class", "split", "group", "subset", "partition")
GROUP_WORDS = frozenset(
    "patient plant subject video person animal individual specimen lesion case study session series scene site camera "
    "sequence clip tree leaf user observer slide donor participant cow herd field plot location burst track".split()
)
BOX_WORDS = frozenset("xmin ymin xmax ymax x_min y_min bbox bounding_box".split())
MAX_DESCRIBED = 50  # unused columns
FEW_PER_VALUE = 5  # photos for each number; with fewer, numbers with fractions are measurements


@dataclass
class Columns:
    """The columns of a table by their use; empty: there is none."""

    file: str = ""
    label: str = ""
    split: str = ""
    group: str = ""
    exclude: str = ""  # true or false: whether the photo is left out
    flags: dict[str, str] = field(default_factory=dict)  # column of true and false to the split of true
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)  # unused ones that may name groups

    def split_of(self, row: dict[str, str]) -> str:
        """What a row says about its split; empty if there is no such column."""
        if self.split:
            return row[self.split].strip()
        marked = (split for column, split in self.flags.items() if row[column].strip().casefold() in TRUE)
        return next(marked, "train" if self.flags else "")

    def excludes(self, row: dict[str, str], where: Callable[[str], DataError]) -> bool:
        """Whether a row is left out; `where` makes the error for a cell that is neither true nor false."""
        value = row[self.exclude].strip().casefold() if self.exclude else ""
        if value not in TRUE | FALSE:
            what = f"column {printable(self.exclude)} holds {printable(value, 40)!r}: expected yes or no"
            raise where(what)
        return value in TRUE


def find_columns(table: Table, group: str = "") -> Columns:
    """Finds the columns of a table; `group` is the one of the groups.

    Raises:
        DataError: no column for the file or the label, several for one use, a name that is almost that of a use, or
            labels that are not one class for each photo.
    """
    found = Columns(group=group)
    if group and group not in table.header:
        what = f"{printable(table.path)} has no column {printable(group)}, only {listed(table.header, limit=20)}"
        raise DataError(what, "correct --groups")
    for use in COLUMNS:
        if not getattr(found, use):
            setattr(found, use, _column_for(use, table))
    named = {found.file, found.label, found.split, found.group, found.exclude}
    _refuse_near_misses(table, [name for name in table.header if name not in named])
    _find_splits(table, found)
    used = {*named, found.split, *found.flags}
    rest = [name for name in table.header if name.strip() and name not in used]
    if not found.file or not found.label:
        raise _missing(table, found, rest)
    _refuse_other_tasks(table, found)  # guard: D02 tasks
    found.unused = [_describe(name, table) for name in rest[:MAX_DESCRIBED]]
    if len(rest) > MAX_DESCRIBED:
        found.unused.append(f"{plural(len(rest) - MAX_DESCRIBED, 'more column')}")
    found.groups = [name for name in rest[:MAX_DESCRIBED] if _is_group(name, table)]
    return found


def _plain(name: str) -> str:
    """A name in lower case with single underscores."""
    return re.sub(r"[\s_\-.]+", "_", name.strip()).casefold()


def _values(name: str, table: Table) -> set[str]:
    return {value.strip().casefold() for value in table.distinct[name]}


def _column_for(use: str, table: Table) -> str:
    for names in COLUMNS[use]:
        matching = [column for column in table.header if _plain(column) in names.split()]
        if len(matching) > 1:
            what = f"{printable(table.path)} has several columns for the {use}: {listed(matching)}"
            raise DataError(what, f"keep one, named {use}")
        if matching:
            return matching[0]
    return ""


def _find_splits(table: Table, found: Columns) -> None:
    """Finds a split in a column with another name, by its values."""
    if found.split:
        return
    for name in table.header:
        if _plain(name) in FLAGS and _values(name, table) <= TRUE | FALSE:
            found.flags[name] = FLAGS[_plain(name)]
    named = []
    for name in table.header:
        values = table.distinct[name]
        if (
            name not in (found.file, found.label, found.group, found.exclude, *found.flags)
            and 1 < len(values) < MANY_VALUES
        ):
            splits = splits_of_values(values)
            if set(splits) == values and "train" in splits.values() and len(set(splits.values())) > 1:
                named.append(name)
    if len(named) + bool(found.flags) > 1:
        what = f"{printable(table.path)} has several columns for the split: {listed([*named, *found.flags])}"
        raise DataError(what, "keep one, named split")
    if named:
        found.split = named[0]
    if own := [*named, *found.flags]:
        found.notes.append(f"column {listed(own)} is read as the split, by its values")


def _refuse_near_misses(table: Table, names: Sequence[str]) -> None:
    for name in names:
        for meant in NEAR:
            if _is_near(_plain(name), meant):  # guard: D02 near
                what = f"{printable(table.path)} has a column {printable(name)}, which nothing reads"
                raise DataError(what, f"if it is meant as {meant}, rename it; else rename or remove it too")


def _is_near(name: str, meant: str) -> bool:
    """Whether two letters beside each other are exchanged, or one is missing or too much."""
    exchanged = (meant[:i] + meant[i + 1] + meant[i] + meant[i + 2 :] for i in range(len(meant) - 1))
    longer, shorter = sorted((name, meant), key=len, reverse=True)
    one_less = len(longer) == len(shorter) + 1 and any(
        longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer))
    )
    return name != meant and (name in exchanged or (one_less and len(shorter) > 3))


def _missing(table: Table, found: Columns, rest: Sequence[str]) -> DataError:
    header, path = listed(table.header, limit=20), printable(table.path)
    if not found.file:
        return DataError(f"{path} has no column for the file, only {header}", "name it file")
    flags = [name for name in rest if _values(name, table) <= (TRUE | FALSE) - {""}]
    if len(flags) > 1:
        sums = {sum(row[name].strip().casefold() in TRUE for name in flags) for _, row in table.rows}
        kind = "one column for each class" if sums == {1} else "multi-label data, where a photo has several classes"
        what = f"{path} is not supported: {kind}, by its columns {listed(flags)} of zeros and ones"
        return DataError(what, "write the one class of each photo into a column label")
    return DataError(f"{path} has no column for the label, only {header}", "start it with file,label")


def _refuse_other_tasks(table: Table, found: Columns) -> None:
    """Raises a `DataError` for labels that are measurements, several classes, or boxes."""
    labels = Counter(value.strip() for value in table.values(found.label))
    where = f"{printable(table.path)} is not supported: column {printable(found.label)} holds"
    numbers = [_number(label) for label in labels]
    if None not in numbers and len(labels) > 1 and labels.total() < FEW_PER_VALUE * len(labels):
        whole = all(number == int(number) for number in numbers if number is not None)
        if not whole or (len(labels) > 20 and labels.total() < 2 * len(labels)):
            count = f"{plural(labels, 'different number')} for {plural(labels.total(), 'photo')}"
            what = f"{where} {count}, such as {next(iter(labels))}"
            raise DataError(f"{what}: that is regression", "write a class into it, such as a range of the numbers")
    if example := _several_labels(list(labels)):
        what = f"{where} several classes in a cell, such as {printable(example, 60)}: that is multi-label data"
        raise DataError(what, "write the one class of each photo, or join the words of a class with _")
    boxes = [name for name in table.header if _plain(name) in BOX_WORDS]
    if boxes and len(set(table.values(found.file))) < len(table.rows):
        what = f"{printable(table.path)} is not supported: it marks objects in photos, by its columns {listed(boxes)}"
        raise DataError(what, "cut the objects out, and list a file and a class for each")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e300 else None


def _several_labels(labels: Sequence[str]) -> str:
    """A label that consists of others: `red round` beside `red`, `a|b` beside `b|c`; else empty."""
    if lists := [label for label in labels if re.fullmatch(r"\[.*\]|\{.*\}", label)]:
        return lists[0]
    for separator in "|;, ":
        pieces = {label: [piece.strip() for piece in label.split(separator)] for label in labels}
        several = {label: own for label, own in pieces.items() if len(own) > 1}
        alone = {own[0] for own in pieces.values() if len(own) == 1}
        first, later = {own[0] for own in several.values()}, {p for own in several.values() for p in own[1:]}
        # A word order such as "tulip, red" and "tulip, yellow" is a name; so is a single "sea lion" beside "lion".
        by_words = len(several) > 0 and all(alone.issuperset(own) for own in several.values())
        if by_words or (separator != " " and (first & later or (alone & first and alone & later))):
            return next(iter(several))
    return ""


def _describe(name: str, table: Table) -> str:
    """An unused column, with what it may be good for."""
    column, option = f"column {printable(name)}", f"--groups {COLUMN_MARK}{printable(name)}"
    values = set(table.values(name))
    if set(_words(name)) & {"fold", "folds", "kfold"} and len(values) > 1:
        return f"{column} (crossval draws its own folds; {option} keeps each of these {len(values)} in one split)"
    if _is_group(name, table):
        return f"{column} ({plural(values, 'value')}; {option} keeps the photos of each in one split)"
    return column


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", _plain(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)))


def _is_group(name: str, table: Table) -> bool:
    """Whether a column looks like the ids of patients, plants, videos: by its name, and because values repeat."""
    values = [value for value in table.values(name) if value.strip()]
    words = set(_words(name))
    is_id = bool(words & {"id", "uid", "uuid"}) and 2 * len(set(values)) <= len(values)
    return 1 < len(set(values)) < len(values) and (bool(words & GROUP_WORDS) or is_id)
