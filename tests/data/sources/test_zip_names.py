"""Names in zip archives of Windows, macOS and Linux."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.data.sources.open import open_dataset


def archive(path: Path, names: list[bytes], extra: bool = False) -> Path:
    """A zip without the mark of UTF-8 whose names are these bytes."""
    Image.new("RGB", (8, 8)).save(path.with_suffix(".jpg"), "JPEG")
    photo = path.with_suffix(".jpg").read_bytes()
    stand = [bytes([65 + number]) * len(name) for number, name in enumerate(names)]
    with zipfile.ZipFile(path, "w") as content:
        for name, raw in zip(stand, names, strict=True):
            info = zipfile.ZipInfo(name.decode())
            if extra:
                text = raw.decode("cp932").encode()
                field = b"\x01" + struct.pack("<I", zlib.crc32(raw)) + text
                info.extra = struct.pack("<HH", 0x7075, len(field)) + field
            content.writestr(info, photo)
    data = path.read_bytes()
    for name, raw in zip(stand, names, strict=True):
        data = data.replace(name, raw)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("encoding", "classes", "note"),
    [
        ("utf-8", ("Gänseblümchen", "桜"), ""),
        ("cp437", ("Gänseblümchen", "Löwenzahn"), "cp437"),
        ("cp866", ("роза", "тюльпан"), "cp866"),
    ],
)
def test_names_that_are_certain(tmp_path, encoding, classes, note):
    names = [f"{name}/{i}.jpg".encode(encoding) for name in classes for i in range(2)]
    dataset = open_dataset(archive(tmp_path / "photos.zip", names), tmp_path / "cache")
    assert dataset.classes == tuple(sorted(classes))
    assert any(note in text for text in dataset.notes) if note else dataset.notes == ()
    assert open_dataset(tmp_path / "photos.zip", tmp_path / "cache") == dataset


def test_names_that_are_not_certain_are_reported(tmp_path):
    names = [f"{name}/1.jpg".encode("cp932") for name in ("桜", "梅")]
    dataset = open_dataset(archive(tmp_path / "photos.zip", names), tmp_path / "cache")
    assert len(dataset.classes) == 2 and "unknown encoding" in dataset.notes[0]


def test_names_that_the_archive_has_in_unicode(tmp_path):
    names = [f"{name}/1.jpg".encode("cp932") for name in ("桜の木", "梅の木")]
    dataset = open_dataset(archive(tmp_path / "photos.zip", names, extra=True), tmp_path / "cache")
    assert dataset.classes == ("桜の木", "梅の木") and dataset.notes == ()
