"""MNIST's files: their names, their content, damage."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.data.sources.mnist import read_idx
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.errors import DataError


def idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize("form", ["{}-idx{}-ubyte", "{}.idx{}-ubyte", "{}-idx{}-ubyte.gz"])
def test_the_four_files(tmp_path: Path, form: str) -> None:
    draw = np.random.default_rng(0)
    images = {stem: draw.integers(0, 256, (20, 28, 28), dtype=np.uint8) for stem in ("train", "t10k")}
    for stem, pixels in images.items():
        labels = (np.arange(20) % 10).astype(np.uint8)
        for kind, values in (("images", pixels), ("labels", labels)):
            content = idx(values)
            path = tmp_path / "digits" / form.format(f"{stem}-{kind}", values.ndim)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    dataset = open_dataset(tmp_path / "digits", tmp_path / "cache")
    assert dataset.name == "digits" and dataset.classes == tuple("0123456789") and len(dataset) == 40
    (path,) = [path for path in dataset.paths if path.startswith("test/3/") and path.endswith("13.png")]
    found = np.asarray(Image.open(dataset.root / path))
    assert np.array_equal(found, np.repeat(images["t10k"][13][:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (idx(np.zeros((2, 3), np.uint8))[:-1], "holds 5 bytes instead of 6"),
        (idx(np.zeros((2, 3), np.uint8)) + b"0", "holds 7 bytes instead of 6"),
        (b"\0\0\x0d\x01\0\0\0\x01\0", "does not begin as one of bytes"),
        (b"", ""),
        (b"\0\0\x08\x03" + b"\xff" * 12, "claims"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=f"a-ubyte is not a valid IDX file.*{what}"):
        read_idx(tmp_path / "a-ubyte")
