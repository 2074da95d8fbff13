"""Keras files of strangers: nothing outside is opened, nothing is visited twice, sizes are compared first."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowers_torch.errors import ModelFileError
from flowers_torch.models.factory import create_model
from flowers_torch.models.keras.files import is_keras_file, read_keras_file
from flowers_torch.models.keras.weights import load_keras_weights

CONV = [np.ones((7, 7, 3, 32), np.float32), np.ones(32, np.float32)]
NORM = [np.ones(32, np.float32)] * 4


def write(path: Path, change: Callable[[Any], None] = lambda group: None, **layers: list[np.ndarray]) -> Path:
    """A legacy file of layers; `change` gets the group of the first one."""
    layers = layers or {"conv0": CONV, "bn0": NORM}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [str(number).encode() for number in range(len(arrays))]
            for number, array in enumerate(arrays):
                group[str(number)] = array
        change(file[next(iter(layers))])
    return path


def replace_by(make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(group: Any) -> None:
        del group["0"]
        made = make(group)
        if made is not None:
            group["0"] = made

    return change


def virtual(source: Path) -> Callable[[Any], None]:
    def make(group: Any) -> None:
        layout = h5py.VirtualLayout(shape=CONV[0].shape, dtype="f4")
        layout[:] = h5py.VirtualSource(str(source), "conv0/0", shape=CONV[0].shape)
        group.create_virtual_dataset("0", layout)

    return make


def test_a_whole_file_loads(tmp_path: Path) -> None:
    assert load_keras_weights(create_model("happy_model", 2), "happy_model", write(tmp_path / "a.h5")).used == 6


@pytest.mark.parametrize("kind", ["external", "soft", "layer"])
def test_only_hard_links_are_followed(tmp_path: Path, kind: str) -> None:
    other = write(tmp_path / "other.h5")
    link = h5py.SoftLink("/bn0/0") if kind == "soft" else h5py.ExternalLink(str(other), "conv0/0")
    path = write(tmp_path / "a.h5", replace_by(lambda group: link))
    if kind == "layer":
        with h5py.File(path, "r+") as file:
            del file["conv0"]
            file["conv0"] = h5py.ExternalLink(str(other), "conv0")
    with pytest.raises(ModelFileError, match="lies elsewhere"):
        read_keras_file(path)


@pytest.mark.needs("pipes")
@pytest.mark.parametrize("name", ["model_weights", "layers", "_layer_checkpoint_dependencies"])
def test_a_link_to_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = h5py.ExternalLink(str(tmp_path / "pipe"), "/x")
    for path in (tmp_path / "a.h5", tmp_path / "pipe"):
        with pytest.raises(ModelFileError, match="lies elsewhere|not a regular file"):
            read_keras_file(path)
    with pytest.raises(ModelFileError, match="not a regular file"):
        is_keras_file(tmp_path / "pipe")


def test_data_in_other_files_is_not_read(tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5")
    place = [(str(other), 0, 64)]
    for make in (virtual(other), lambda g: g.create_dataset("0", (4, 4), "f4", external=place) and None):
        with pytest.raises(ModelFileError, match="0 is missing, or lies in another file"):
            read_keras_file(write(tmp_path / "a.h5", replace_by(make)))


def chunked(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Callable[[Any], None]:
    return lambda g: g.create_dataset("0", shape, "f4", maxshape=(None,) * len(shape), chunks=chunks) and None


@pytest.mark.parametrize("make", [chunked((10**6, 1000), (1000, 1000)), chunked((4,), (2**28,))])
def test_claimed_sizes_are_compared_with_the_file(tmp_path: Path, make: Callable[[Any], None]) -> None:
    """Also of a chunk that is larger than its array."""
    with pytest.raises(ModelFileError, match="claims to hold much more than its bytes"):
        read_keras_file(write(tmp_path / "a.h5", replace_by(make)))


@pytest.mark.parametrize("dtype", ["S4", "c16", np.dtype(("f4", (1000,))), h5py.vlen_dtype("f4"), h5py.string_dtype()])
def test_arrays_hold_numbers(tmp_path: Path, dtype: Any) -> None:
    path = write(tmp_path / "a.h5", replace_by(lambda g: g.create_dataset("0", (2,), dtype) and None))
    with pytest.raises(ModelFileError, match="0 holds no numbers"):
        read_keras_file(path)


@pytest.mark.parametrize("names", [7, np.zeros(3), [b"a"] * 20_000])
def test_names_are_a_list_of_texts(tmp_path: Path, names: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.attrs["layer_names"] = names
    with pytest.raises(ModelFileError, match="layer_names is not a list of names"):
        read_keras_file(tmp_path / "a.h5")


def test_each_group_is_visited_once(tmp_path: Path) -> None:
    """Two links to one group in 40 levels would be 2**40 visits; a level of 2**16 is enough for this test."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        above = file.create_group("layers")
        for level in range(16):
            below = file.create_group(f"level{level}")
            above["a"] = above["b"] = below
            above = below.create_group("layers")
        file["layers/a/layers/itself"] = file["layers"]
        for name in ("b", "a"):
            file.create_group(f"layers/x/layers/{name}/vars")["0"] = np.zeros(2)
        file["layers/y"] = file["layers/x"]
    assert sorted(read_keras_file(tmp_path / "a.h5").layers) == ["a", "b"]


def test_a_layer_is_named_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [b"conv0", b"conv0"]
    with pytest.raises(ModelFileError, match="no layer conv0, or two"):
        read_keras_file(path)


def test_archives_that_are_damaged_or_claim_too_much(tmp_path: Path) -> None:
    memory, path = io.BytesIO(write(tmp_path / "a.h5").read_bytes()), tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", memory.getvalue())
    whole = path.read_bytes()
    assert is_keras_file(path) and list(read_keras_file(path).layers) == ["conv0", "bn0"]
    for at in (whole.rfind(b"PK\x01\x02") + 6, whole.rfind(b"PK\x05\x06") + 16, 40):  # version, offset, CRC
        path.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
        with pytest.raises(ModelFileError, match="a.keras"):
            is_keras_file(path)
            read_keras_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(101 << 20))
    for reader in (is_keras_file, read_keras_file):
        with pytest.raises(ModelFileError, match="claims to hold much more"):
            reader(path)


@pytest.mark.parametrize(
    ("conv", "norm", "reason"),
    [
        ([np.ones((0, 7, 3, 32)), CONV[1]], NORM, ""),
        ([np.float32(1.0), CONV[1]], NORM, "shapes differ"),
        ([np.full(CONV[0].shape, np.nan), CONV[1]], NORM, "not finite"),
        ([np.full(CONV[0].shape, 1e300), CONV[1]], NORM, "not finite"),
        (CONV, [*NORM[:3], -NORM[3]], "negative"),
        (CONV, NORM * 3, ""),
        (CONV * 400, NORM, ""),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, conv: list[np.ndarray], norm: list[np.ndarray], reason: str) -> None:
    path = write(tmp_path / "a.h5", conv0=conv, bn0=norm)
    with pytest.raises(ModelFileError, match=rf"a\.h5.*{reason}"):
        load_keras_weights(create_model("happy_model", 2), "happy_model", path)


def test_a_name_with_a_huge_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **{"conv2d_" + "9" * 5000: CONV, "bn0": NORM})
    with pytest.raises(ModelFileError, match=r"a\.h5 is not a weights file of Keras's happy_model"):
        load_keras_weights(create_model("happy_model", 2), "happy_model", path)
