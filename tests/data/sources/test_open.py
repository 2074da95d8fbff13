"""Values of `--data`."""

import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.data.sources.open import open_dataset
from flowers_torch.errors import DataError


def class_folders(root: Path) -> Path:
    for name in ("a/1.jpg", "b/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def test_folders(tmp_path, monkeypatch):
    class_folders(tmp_path / "plain")
    class_folders(tmp_path / "split/train")
    class_folders(tmp_path / "split/Validation")
    assert open_dataset(tmp_path / "plain").classes == ("a", "b")
    assert set(open_dataset(str(tmp_path / "split")).split.values()) == {"train", "val"}
    for name in ("HOME", "USERPROFILE"):  # the second is that of Windows
        monkeypatch.setenv(name, str(tmp_path))
    assert open_dataset("~/plain").name == "plain"


@pytest.mark.parametrize("inner", ["", "photos", "photos/again"])
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_archives_of_folders(tmp_path, inner, kind):
    root = class_folders(tmp_path / "in" / inner) and tmp_path / "in"
    archive = tmp_path / f"roses.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as content:
            for path in root.rglob("*.jpg"):
                content.write(path, path.relative_to(root))
    else:
        with tarfile.open(archive, "w:gz") as content:
            content.add(root, ".")
    dataset = open_dataset(archive, tmp_path / "cache")
    assert dataset.name == "roses" and dataset.classes == ("a", "b") and len(dataset) == 2


def test_demo_is_drawn_once(tmp_path, monkeypatch):
    drawn = []
    draw = "flowers_torch.data.sources.open.draw_demo"
    monkeypatch.setattr(draw, lambda folder: drawn.append(folder) or class_folders(folder))
    first = open_dataset("demo", tmp_path)
    assert first.name == "demo" and first == open_dataset("demo", tmp_path) and len(drawn) == 1
    assert [path.name for path in tmp_path.iterdir()] == [first.root.name]


def test_unknown_sources_say_what_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for name, what in {
        "notes.txt": "not an archive",
        "none": "does not exist",
        "none.zip": "does not exist",
    }.items():
        with pytest.raises(DataError, match=f"{name} .*{what}.*flowers17, or demo"):
            open_dataset(tmp_path / name)


def test_unusual_paths(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):  # the second is that of Windows
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("my photos", "-odd", "fünf & mehr"):
        class_folders(tmp_path / name)
    for typed in ("my photos", "my photos/", "~/my photos", "./my photos//", "-odd", "fünf & mehr"):
        assert len(open_dataset(typed)) == 2, typed
    with pytest.raises(DataError, match=r"a\\x00b does not exist") as caught:
        open_dataset("a\0b")
    assert "\0" not in str(caught.value)
