"""Folders of images, with the files that people, file managers and archives leave in them."""

import os
import random
import re
import socket
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.data.sources.folders import find_images, natural_key
from flowers_torch.errors import DataError


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "JPEG")
    return root


def test_class_folders(tmp_path):
    put(tmp_path, "b/2.jpg", "b/10.JPG", "b/deep/er.JpEg", "a10/1.jfif", "a2/1.gif")
    dataset = find_images(tmp_path)
    assert dataset.classes == ("a2", "a10", "b")
    assert dataset.paths == ("a2/1.gif", "a10/1.jfif", "b/2.jpg", "b/10.JPG", "b/deep/er.JpEg")
    assert dataset.labels == (0, 1, 2, 2, 2) and dataset.counts() == [1, 1, 3]
    assert dataset.split == {} and dataset.unused == () and dataset.name == tmp_path.name
    assert dataset.notes == ("folders in class folders belong to the class: b/deep",)


def test_natural_order():
    names = ["x10", "X9", "x1", "x01", "é", "x1a", "", "10", "9"]
    assert sorted(names, key=natural_key) == ["", "9", "10", "x01", "x1", "x1a", "X9", "x10", "é"]


def test_the_natural_order_is_that_of_the_pieces_of_names():
    """Text as text, numbers as numbers, whatever stands beside them."""

    def pieces(name):
        parts = re.split(r"([0-9]+)", name.casefold())
        return [int(part) if n % 2 else part for n, part in enumerate(parts)], name

    draw = random.Random(0)
    letters = ["a", "B", "1", "9", "0", "10", "_", "/", "é", " ", "~"]
    names = {"".join(draw.choices(letters, k=draw.randrange(7))) for _ in range(2000)}
    assert sorted(names, key=natural_key) == sorted(names, key=pieces)


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "DEV", "validate"])
def test_split_folders_are_a_split(tmp_path, val):
    put(
        tmp_path,
        "Train/a/1.jpg",
        "Train/b/2.jpg",
        f"{val}/a/3.jpg",
        f"{val}/b/4.jpg",
        "test/b/5.jpg",
        "test/a/6.jpg",
    )
    dataset = find_images(tmp_path)
    assert dataset.classes == ("a", "b")
    assert {dataset.split[path] for path in dataset.paths if path.startswith(val)} == {"val"}
    by_path = dict(zip(dataset.paths, dataset.labels, strict=True))
    assert by_path["test/b/5.jpg"] == 1 and by_path["test/a/6.jpg"] == 0 and len(dataset) == 6


def test_a_missing_split_is_noted(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "validation/a/3.jpg", "validation/b/4.jpg", "extra/x.jpg")
    dataset = find_images(tmp_path)
    assert "no test folder" in "\n".join(dataset.notes) and dataset.unused == ("extra (1 photo)",)


def test_classes_that_differ_between_splits_are_an_error(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/b/1.jpg", "val/c/1.jpg")
    with pytest.raises(DataError, match="val in .*differ.*missing a, extra c"):
        find_images(tmp_path)
    (tmp_path / "val/c/1.jpg").unlink()
    (tmp_path / "val/c").rmdir()
    (tmp_path / "val/a").mkdir()
    with pytest.raises(DataError, match="missing a"):
        find_images(tmp_path)


def test_two_folders_for_one_split(tmp_path):
    put(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg")
    with pytest.raises(DataError, match="several folders for val: val, valid"):
        find_images(tmp_path)


def test_a_class_may_be_called_test(tmp_path):
    put(tmp_path, "test/1.jpg", "bench/1.jpg")
    assert find_images(tmp_path, classes="top").classes == ("bench", "test")


def test_missing_file_or_empty_root(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("none", "file", "empty"):
        with pytest.raises(DataError, match=f"{name}.*FOLDER/<class>/<photo>"):
            find_images(tmp_path / name)


def test_images_at_the_wrong_depth(tmp_path):
    put(tmp_path, "flat/1.jpg", "deep/flowers/rose/1.jpg", "deep/flowers/tulip/1.jpg")
    with pytest.raises(DataError, match="flat holds photos but no class folders"):
        find_images(tmp_path / "flat")
    dataset = find_images(tmp_path / "deep")
    assert dataset.classes == ("rose", "tulip") and dataset.layout == "one folder per class in flowers"
    inner = [f"parts/inner/{split}/{name}/1.jpg" for split in ("train", "test") for name in "ab"]
    assert set(find_images(put(tmp_path, *inner) / "parts").split.values()) == {"train", "test"}


def test_all_empty_classes_are_listed(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    for name in ("c", "d", "e/inner"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "d/notes.txt").write_text("")
    with pytest.raises(DataError, match="3 of 5 .*c, d, e"):
        find_images(tmp_path)


def test_one_class_only(tmp_path):
    with pytest.raises(DataError, match="one class only: rose"):
        find_images(put(tmp_path, "rose/1.jpg"))


def test_hidden_and_system_files_are_ignored_and_counted(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg", "a/._1.jpg", ".ipynb_checkpoints/1.jpg", "__MACOSX/a/1.jpg")
    put(tmp_path, "a/@eaDir/1.jpg", ".git/x.jpg", "stray.jpg")
    for name in ("a/.DS_Store", "b/.DS_Store", "b/Thumbs.db", "a/notes.txt", "a/clip.mov", "a/web.svg"):
        (tmp_path / name).write_text("")
    dataset = find_images(tmp_path)
    assert dataset.paths == ("a/1.jpg", "b/1.jpg") and dataset.classes == ("a", "b")
    notes = "\n".join([*dataset.notes, *dataset.unused])
    for text in (
        ".DS_Store (2)",
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir",
        "Thumbs.db",
        "._1.jpg",
        "stray.jpg",
    ):
        assert text in notes, text
    assert "a: ignored 3 files that are not photos" in notes and ".mov" in notes and ".svg" in notes


@pytest.mark.needs("links")
def test_links(tmp_path):
    put(tmp_path, "set/a/1.jpg", "set/b/1.jpg", "elsewhere/2.jpg")
    root = tmp_path / "set"
    (root / "a/up").symlink_to(tmp_path, target_is_directory=True)
    (root / "a/self").symlink_to(root / "a", target_is_directory=True)
    (root / "a/other").symlink_to(root / "b", target_is_directory=True)
    (root / "a/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a/twice").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b/gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "b/loop.jpg").symlink_to(root / "b/loop.jpg")
    (root / "b/real.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    dataset = find_images(root)
    assert dataset.paths == ("a/1.jpg", "a/more/2.jpg", "b/1.jpg", "b/real.jpg")
    assert any("b: ignored 2" in note and "dangling link (2)" in note for note in dataset.notes)


@pytest.mark.needs("pipes")
def test_pipes_and_sockets_are_left_out(tmp_path, monkeypatch):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    monkeypatch.chdir(tmp_path)  # socket paths must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("b/socket.jpg")
        dataset = find_images(tmp_path)
    assert dataset.paths == ("a/1.jpg", "b/1.jpg")
    assert sum("pipe, socket or device" in note for note in dataset.notes) == 2


@pytest.mark.needs("no_root")
def test_an_unreadable_folder_is_named(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "b").chmod(0)
    with pytest.raises(DataError, match="b: Permission denied"):
        find_images(tmp_path)
    (tmp_path / "b").chmod(0o755)


def test_an_unreadable_folder_is_named_even_to_root(tmp_path, monkeypatch):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    real = os.scandir

    def scandir(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="b: Permission denied"):
        find_images(tmp_path)


@pytest.mark.needs("names")
def test_hostile_names(tmp_path):
    names = [
        "-rf.jpg",
        "a b'\"c.jpg",
        "x\ny\x1b[31m.jpg",
        "\U0001f33b.jpg",
        "\xe9.jpg",
        "e\u0301.jpg",
        "n" * 251 + ".jpg",
    ]
    put(tmp_path, *(f"rose/{name}" for name in names), "tulip/1.jpg")
    odd = os.fsencode(tmp_path) + b"/tulip/\xff\xfe.jpg"
    Image.new("RGB", (8, 8)).save(os.fsdecode(odd))
    dataset = find_images(tmp_path)
    assert len(dataset) == len(names) + 2
    assert all((dataset.root / path).is_file() for path in dataset.paths)


@pytest.mark.needs("case")
def test_nearly_equal_class_names_are_noted(tmp_path):
    dataset = find_images(put(tmp_path, "Rose/1.jpg", "rose/1.jpg", "\xe9/1.jpg", "e\u0301/1.jpg"))
    assert dataset.classes == ("Rose", "rose", "\xe9") and dataset.labels == (0, 1, 2, 2)
    notes = "\n".join(dataset.notes)
    assert "'Rose', 'rose'" in notes and "encoding of accents are one class: \xe9" in notes


def test_nothing_is_written(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    find_images(tmp_path)
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
