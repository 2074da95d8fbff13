"""The doors of records: bounded, regular files only, and whatever the bytes are, one line of ours."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.errors import DataError, FlowersError, UsageError
from flowers_torch.files.atomic import write_csv
from flowers_torch.files.cache import recall, remember
from flowers_torch.files.reading import check, read_csv, read_json, read_toml

DEEP = 100_000


@pytest.mark.needs("names")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"n": 18446744073709551616}',
        b'{"n": 1e400}',
        b'{"n": NaN}',
        b'{"n": true}',
        b'{"n": null}',
        b'{"n": "\xff"}',
        b"\xff\xfe",
        b"[]",
        b"[[],[],[]" + b",[]" * 2_100_000 + b"]",
    ],
    ids=range(14),
)
def test_json_of_another_form_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x\x1b[2J.json"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(DataError, match=r"x\\x1b\[2J.json is not a record: .*; fix: use another copy") as caught:
        read_json(path, "a record", {"n": int})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800
    assert time.process_time() - started < 2


def test_too_many_lists_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("[" + "[]," * 2_000_000 + "[]]")
    with pytest.raises(DataError, match="more than 2,000,000 lists"):
        read_json(tmp_path / "x", "a record", [[int]])


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * DEEP,
        "x = " + "9" * 5000,
        "x = 0x" + "f" * 5000,
        "x = [[{y = 18446744073709551616}]]",
        "x = 1\nx = 2",
        "a." * 20_000 + "a = 1",
        "[" + "a." * 20_000 + "a]",
        "x = {" + "a." * 20_000 + "a = 1}",
        "x = 1\n" * 20_000,
        "\0",
    ],
    ids=range(10),
)
def test_toml_that_no_program_writes_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    started = time.process_time()
    with pytest.raises(UsageError, match=r"x.toml is (not|too large for) a configuration.*; fix: ") as caught:
        read_toml(tmp_path / "x.toml", "a configuration", UsageError)
    assert str(caught.value).isprintable() and time.process_time() - started < 2


@pytest.mark.needs("pipes")
def test_a_pipe_a_device_and_a_folder_are_refused_immediately(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        for read in (lambda p: read_json(p, "a record", {}), lambda p: read_toml(p, "it"), lambda p: read_csv(p, "it")):
            with pytest.raises(DataError, match="cannot read"):
                read(path)


def test_rows_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbffile,note\na,b,c,d\n"a\nb"\n\xff,\n')
    rows = read_csv(path, "a list", ["file"])
    assert rows == [{"file": "a", "note": "b"}, {"file": "a\nb", "note": ""}, {"file": "\udcff", "note": ""}]
    for content in (b"", b"x,y\n", b"file\n" + b"y" * 200_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match="x.csv is not a list: "):
            read_csv(path, "a list", ["file"])


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        ({"a": 1.5}, {"a": (1, 2)}, r"a is 1.5, expected 1 .. 2"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [int]}}, "a.b is 'x', expected int"),
        ({"a": float("inf")}, {"a": float}, "a is inf, expected float"),
        ({"a": True}, {"a": (0, 5)}, "a is True"),
        ({"a": 3}, {"a": {1, 2}}, "a is 3"),
        ({"a": []}, {"a": {}}, "a is not a table"),
        ({}, {"a": str}, "a is None, expected str"),
        ({"x": 1}, {str: str}, "x is 1"),
    ],
)
def test_the_first_wrong_place_is_named(value: Any, form: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check(value, form)


def test_a_cache_is_believed_only_as_it_was_written(tmp_path: Path) -> None:
    path, value = tmp_path / "c" / "x.json", {"format": 1, "images": {"é": [1, 2.5]}}
    remember(path, value)
    assert recall(path, {"format": {1}}) == value
    assert recall(path, {"format": {2}}) is None and recall(tmp_path / "none", {}) is None
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert recall(path, {}) is None
        path.write_bytes(content[:position])
        assert recall(path, {}) is None


def test_a_record_is_not_believed_with_edited_json(tmp_path: Path) -> None:
    remember(tmp_path / "x", {"n": 1})
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes().replace(b": 1", b": 2"))
    assert recall(tmp_path / "x", {"n": int}) is None


def test_a_split_of_many_images_is_read_quickly(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(
        json.dumps({"train": {f"class/{n:07}.jpg": "0123456789abcdef" for n in range(200_000)}})
    )
    started = time.process_time()
    assert len(read_json(tmp_path / "x", "a split", {"train": {str: str}})["train"]) == 200_000
    assert time.process_time() - started < 2


def test_errors_of_ours_pass_a_door(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match="is not a record"):
        (tmp_path / "x").write_text("nan")
        read_json(tmp_path / "x", "a record", {})


def test_cells_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    """They are written as text and read back as they were; numbers stay numbers."""
    cells = ['=HYPERLINK("x")', "+a", "-rf.jpg", "@sum", "'=a", "''-b", "'rose'", "a=b", "", "-1.5", "+2e-3", "-"]
    write_csv(tmp_path / "x.csv", [{"name": cell, "value": -0.5} for cell in cells])
    lines = (tmp_path / "x.csv").read_text().splitlines()[1:]
    firsts = [line[0] for line in lines]
    assert firsts[1:7] == ["'"] * 6 and firsts[7:] == ["a", ",", "-", "+", "'"]
    assert lines[0] == '"\'=HYPERLINK(""x"")",-0.5' and lines[9] == "-1.5,-0.5"
    assert [row["name"] for row in read_csv(tmp_path / "x.csv", "a table")] == cells
