"""Arrays in memory, HDF5 files and CIFAR-10: usual layouts are converted, others are errors."""

import hashlib
import os
import pickle
import tarfile

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from flowers_torch.data.images import load_image
from flowers_torch.data.sources import arrays
from flowers_torch.data.sources.arrays import check_arrays, cifar10, read_hdf5, write_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.errors import DataError, ResourceError
from flowers_torch.files.system import ignores_case

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 10, 14, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES, None),
        (IMAGES.transpose(0, 3, 1, 2), "channels first"),
        (IMAGES / 255, "0..1: multiplied by 255"),
        (IMAGES.astype(np.float32), "0..255: rounded"),
        (IMAGES.astype(np.int64), "0..255: rounded"),
        ((IMAGES / 255).transpose(0, 3, 1, 2), "channels first"),
    ],
)
def test_image_layouts_and_ranges(images, message):
    pixels, found, notes = check_arrays(images, LABELS)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, IMAGES)
    assert (message is None and notes == []) or any(message in note for note in notes)


@pytest.mark.parametrize("shape", [(12, 10, 14), (12, 10, 14, 1), (12, 1, 10, 14)])
def test_gray_images(shape):
    gray = IMAGES[..., 0].reshape(shape)
    pixels, found, notes = check_arrays(gray, LABELS)
    assert np.array_equal(pixels, np.repeat(IMAGES[..., :1], 3, axis=3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0, 0], r"shape \(14, 3\)"),
        (IMAGES[..., :2], "no axis of 1 or 3 channels"),
        (IMAGES / 127.5 - 1, "values from -1 to 1"),
        (IMAGES.astype(np.int32) * 4, "values from 0 to 1020"),
        (np.where(IMAGES == 7, np.nan, IMAGES), "not finite"),
        (np.array([["x"]]), "shape"),
        (np.full((12, 4, 4, 3), "x"), "not numbers"),
        (IMAGES[:0], "shape"),
    ],
)
def test_invalid_images(images, message):
    with pytest.raises(DataError, match=f"{message}.*fix: "):
        check_arrays(images, LABELS[: len(images)])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS, None),
        (LABELS[:, None], "read as"),
        (LABELS[None], "read as"),
        (np.eye(3)[LABELS], "one-hot"),
        (LABELS + 1, "shifted"),
        (LABELS.astype(np.float32), None),
        (list(LABELS), None),
    ],
)
def test_label_layouts(labels, message):
    pixels, found, notes = check_arrays(IMAGES, labels, classes=3)
    assert np.array_equal(found, LABELS)
    assert (message is None and notes == []) or any(message in note for note in notes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:-1], r"12 images, but labels of shape \(11,\)"),
        (LABELS - 1, "from -1 to 1"),
        (LABELS + 2, "from 2 to 4, expected 0 .. 2"),
        (LABELS * 0.5, "type float64"),
        (np.eye(3)[LABELS] * 0.5, "not one-hot"),
        (np.array(["a"] * 12), "type <U1"),
        (np.array([0x7FA00000] * 12, np.uint32).view(np.float32), "type float32"),  # signaling NaNs
        (np.where(LABELS == 1, np.inf, LABELS), "type float64"),
    ],
)
def test_invalid_labels(labels, message):
    with pytest.raises(DataError, match=f"{message}.*fix: "):
        check_arrays(IMAGES, labels, classes=3)


def test_arrays_are_written_without_loss(tmp_path):
    by_split = {"train": (IMAGES, LABELS + 1), "test": (IMAGES[:6] / 255, LABELS[:6])}
    dataset = write_images(tmp_path / "set", by_split, ["zebra", "ape", "cat"])
    assert dataset.classes == ("zebra", "ape", "cat") and dataset.name == "set"
    assert [list(dataset.split.values()).count(split) for split in ("train", "test")] == [12, 6]
    assert any("train: labels count from 1" in note for note in dataset.notes)
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        index = int(path[-10:-4])
        assert np.array_equal(np.asarray(load_image(dataset.root / path)), IMAGES[index])
        assert label == LABELS[index]
    assert write_images(tmp_path / "set", {}) == dataset  # exists
    plain = write_images(tmp_path / "plain", {"train": (IMAGES, LABELS)})
    assert plain.classes == ("0", "1", "2") and plain.split == {} and len(plain) == 12


@pytest.mark.parametrize("classes", [["a", "a", "b"], ["a", "../b", "c"], ["a", "", "c"], ["a", ".b", "c"]])
def test_class_names_that_are_not_valid_folder_names(tmp_path, classes):
    with pytest.raises(DataError, match="class names"):
        write_images(tmp_path / "set", {"train": (IMAGES, LABELS)}, classes)
    assert list(tmp_path.iterdir()) == []


def write_h5(path, **entries):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in entries.items():
            file[key] = value
    return path


SIGNS = {"list_classes": np.arange(3)}
TRAIN = {"train_set_x": IMAGES, "train_set_y": LABELS}
TEST = {"test_set_x": IMAGES[:6], "test_set_y": LABELS[None, :6]}


def test_hdf5_with_both_splits_and_with_one_each(tmp_path):
    both = open_dataset(write_h5(tmp_path / "happy.h5", **TRAIN, **TEST, list_classes=[b"no", b"so", b"yes"]), tmp_path)
    assert both.classes == ("no", "so", "yes") and both.name == "happy" and len(both) == 18
    path = write_h5(tmp_path / "train_signs.h5", **TRAIN, **SIGNS)
    assert open_dataset(path, tmp_path).split == {}
    unnamed = write_h5(tmp_path / "unnamed.h5", **TRAIN, list_classes=np.array([], "S3"))
    assert open_dataset(unnamed, tmp_path).classes == ("0", "1", "2")
    write_h5(tmp_path / "test_signs.h5", **TEST, **SIGNS)
    dataset = open_dataset(path, tmp_path)
    assert dataset.classes == ("0", "1", "2") and sorted(set(dataset.split.values())) == ["test", "train"]
    assert open_dataset(path, tmp_path) == dataset


@pytest.mark.parametrize("damage", ["delete", "empty", "edit"])
def test_a_damaged_cache_of_arrays_is_written_again(tmp_path, damage):
    path = write_h5(tmp_path / "happy.h5", **TRAIN, list_classes=[b"no", b"so", b"yes"])
    before = open_dataset(path, tmp_path / "cache")
    notes = before.root / ".notes.json"
    content = notes.read_text()
    notes.write_text({"delete": "", "empty": "", "edit": content.replace('"so"', '"os"')}[damage])
    if damage == "delete":
        notes.unlink()
    assert open_dataset(path, tmp_path / "cache") == before and notes.read_text() == content


def test_invalid_hdf5(tmp_path):
    with pytest.raises(DataError, match="lacks train_set_x.*holds test_set_y"):
        read_hdf5(write_h5(tmp_path / "a.h5", test_set_y=TEST["test_set_y"]), tmp_path)
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    with pytest.raises(DataError, match="b.h5 is not a readable HDF5"):
        read_hdf5(tmp_path / "b.h5", tmp_path)
    h5py = pytest.importorskip("h5py")
    write_h5(tmp_path / "other.h5", **TRAIN)
    path = write_h5(tmp_path / "c.h5", train_set_y=LABELS)
    with h5py.File(path, "a") as file:
        file["train_set_x"] = h5py.ExternalLink("other.h5", "/train_set_x")
    with pytest.raises(DataError, match="lacks train_set_x"):  # links to other files are not followed
        read_hdf5(path, tmp_path)


def test_cifar10_comes_from_torchvision_once(tmp_path, monkeypatch):
    calls = []

    class Stub:
        classes = ["airplane", "bird", "automobile"]

        def __init__(self, root, train, download):
            calls.append((root, train, download))
            self.data, self.targets = (IMAGES, list(LABELS)) if train else (IMAGES[:6], list(LABELS[:6]))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stub)
    dataset = open_dataset("cifar10", tmp_path)
    assert dataset.classes == ("airplane", "bird", "automobile") and len(dataset) == 18
    assert cifar10(tmp_path) == dataset and calls == [(tmp_path, True, True), (tmp_path, False, True)]


def write_cifar10(folder, monkeypatch=None):
    """Batches in the original format; torchvision accepts them by patched checksums."""
    folder.mkdir()
    flat = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    contents = {f"data_batch_{i + 1}": {"data": flat[2 * i : 2 * i + 2], "labels": [0, 1]} for i in range(5)}
    contents["test_batch"] = {"data": flat[10:], "labels": [1, 0]}
    contents["batches.meta"] = {"label_names": ["airplane", "automobile"]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    if monkeypatch:
        sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
        train = [[name, sums[name]] for name in sums if name.startswith("data")]
        monkeypatch.setattr(CIFAR10, "train_list", train)
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return flat


def test_cifar10_s_own_files_as_a_folder_and_as_an_archive(tmp_path, monkeypatch):
    flat = write_cifar10(tmp_path / "cifar-10-batches-py", monkeypatch)
    dataset = open_dataset(tmp_path / "cifar-10-batches-py", tmp_path / "cache")
    assert dataset.classes == ("airplane", "automobile")
    assert sorted(dataset.split.values()) == ["test"] * 2 + ["train"] * 10
    where = {path: index for index, path in enumerate(dataset.paths)}
    image = np.asarray(load_image(dataset.root / "test" / "automobile" / "000000.png"))
    assert np.array_equal(image, flat[10].reshape(3, 32, 32).transpose(1, 2, 0))
    assert dataset.labels[where["test/automobile/000000.png"]] == 1
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    unpacked = open_dataset(tmp_path / "cifar-10-python.tar.gz", tmp_path / "other")
    assert unpacked.paths == dataset.paths and unpacked.labels == dataset.labels


def test_batches_with_other_checksums_are_never_unpickled(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "cifar")
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(DataError, match="does not hold the original files of CIFAR-10"):
        open_dataset(tmp_path / "cifar", tmp_path / "cache")


def test_cifar10_without_network(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fails)
    with pytest.raises(ResourceError, match="cannot download CIFAR-10.*cifar-10-batches-py"):
        cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("linux")
def test_hdf5_that_leads_elsewhere_or_claims_too_much(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_h5(tmp_path / "other.h5", **TRAIN)
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "train_set.h5"

    def refuse(match: str, **entries: object) -> None:
        with h5py.File(path, "w") as file:
            for key, value in (TRAIN | entries).items():
                if isinstance(value, h5py.VirtualLayout):
                    file.create_virtual_dataset(key, value)
                elif isinstance(value, dict):
                    file.create_dataset(key, **value)
                else:
                    file[key] = value
        with pytest.raises(DataError, match=match):
            read_hdf5(path, tmp_path)

    layout = h5py.VirtualLayout(IMAGES.shape, "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "train_set_x", IMAGES.shape)
    refuse("train_set_x is not a plain array", train_set_x=layout)
    for link in (
        h5py.ExternalLink(str(tmp_path / "pipe"), "/x"),
        h5py.SoftLink("/train_set_x"),
        h5py.SoftLink("/gone"),
    ):
        refuse("lacks train_set_x", train_set_x=link)  # opening a pipe would wait forever
    refuse("train_set_x claims", train_set_x={"shape": (10**6, 30, 30, 3), "dtype": "u1", "chunks": True})
    refuse("expected 0 .. 99,999", train_set_y=np.full(len(IMAGES), 10**8))
    refuse("labels have the type", train_set_y=np.full(len(IMAGES), np.inf))
    refuse("class names that are not valid folder names", list_classes=[b"a" * 300, b"b", b"c"])
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"cannot read .*train_set\.h5: Input/output error"):
        read_hdf5(path, tmp_path)


def test_class_names_that_would_be_one_folder(tmp_path, monkeypatch):
    images, labels = np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1])
    splits = {"train": (images, labels)}
    if not ignores_case(tmp_path):
        assert list(write_images(tmp_path / "apart", splits, ["Rose", "rose"]).classes) == ["Rose", "rose"]
    monkeypatch.setattr(arrays, "ignores_case", lambda folder: True)
    with pytest.raises(DataError, match="class names that are one folder on this disk: Rose, rose"):
        write_images(tmp_path / "one", splits, ["Rose", "rose"])
    assert not (tmp_path / "one").exists()
