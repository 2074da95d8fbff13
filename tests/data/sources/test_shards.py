"""Tar shards: their images behave like files, and nothing is unpacked."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data import tar_members
from flowers_torch.data.augment.per_image import train_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.loading.loaders import TransformedImages, make_loader
from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.shards import find_shards
from flowers_torch.data.splits.assign import split_dataset
from flowers_torch.data.tar_members import members, open_member
from flowers_torch.errors import DataError


def jpeg(number: int, side: int = 70) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, files: dict[str, bytes], **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as content:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            content.addfile(info, io.BytesIO(data))


@pytest.fixture
def folders(tmp_path):
    """Two shards of class folders."""
    for shard in range(2):
        files = {f"{'rose tulip'.split()[i % 2]}/{shard}{i}.jpg": jpeg(10 * shard + i) for i in range(10)}
        write_tar(tmp_path / f"set/part-{shard}.tar", files | {"README.md": b"hello"})
    return tmp_path / "set"


def test_class_folders_in_shards(folders):
    dataset = open_dataset(folders)
    assert dataset.classes == ("rose", "tulip") and dataset.counts() == [10, 10] and dataset.name == "set"
    assert dataset.paths[0] == "part-0.tar/rose/00.jpg" and dataset.split == {}
    assert any("2 shards" in note for note in dataset.notes) and any(".md (2)" in note for note in dataset.notes)
    assert load_image(dataset.root / dataset.paths[0]).size == (70, 70)
    before = sorted(path.name for path in folders.iterdir())
    filtered = filter_images(dataset)
    assert not filtered.unreadable and len(filtered.dataset) == 20
    splits = split_dataset(dataset)
    assert sorted(sum(splits.values(), [])) == list(range(20))
    assert sorted(path.name for path in folders.iterdir()) == before


def test_batches_from_shards_are_those_from_files(folders, tmp_path):
    dataset = open_dataset(folders)
    for path in dataset.paths:
        target = tmp_path / "unpacked" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(open_member(*tar_members.split_path(dataset.root / path)).read())

    def batches(root, workers=0):
        transform = train_transform("rand", 24, (0.5,) * 3, (0.5,) * 3)
        transformed = TransformedImages([root / path for path in dataset.paths], dataset.labels, transform, 3)
        loader, _ = make_loader(transformed, 7, shuffle=True, workers=workers)
        return torch.cat([batch.image for batch in loader])

    files = batches(tmp_path / "unpacked")
    assert torch.equal(batches(folders), files) and torch.equal(batches(folders, workers=1), files)


@pytest.mark.parametrize("kind", ["cls", "numbers", "named numbers", "json"])
def test_label_files_beside_the_images(tmp_path, kind):
    files = {}
    for i in range(12):
        label = ("b", "a", "c")[i % 3]
        files[f"x{i:03d}.jpg"] = jpeg(i)
        number = str("bac".index(label))
        content = {"cls": label, "json": json.dumps({"label": label, "width": 3})}.get(kind, number)
        files[f"x{i:03d}.{'json' if kind == 'json' else 'cls'}"] = content.encode()
    write_tar(tmp_path / "0.tar", files)
    if kind == "named numbers":
        (tmp_path / "classes.txt").write_text("b\na\nc\n")
    dataset = open_dataset(tmp_path)
    wanted = {"numbers": ("0", "1", "2"), "named numbers": ("b", "a", "c")}.get(kind, ("a", "b", "c"))
    assert dataset.classes == wanted and dataset.counts() == [4, 4, 4]
    assert dataset.classes[dataset.labels[0]] == ("0" if kind == "numbers" else "b")


def test_shards_that_are_split_already(tmp_path):
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for shard in range(count):
            files = {f"{name}/{split}{shard}{i}.jpg": jpeg(i) for i in range(3) for name in "ab"}
            write_tar(tmp_path / f"mine-{split}-{shard:04d}.tar", files)
    dataset = open_dataset(tmp_path)
    assert sorted(dataset.split.values()).count("train") == 12 and len(dataset.split) == len(dataset) == 24
    assert len(open_dataset(f"{tmp_path}/mine-train-{{0000..0001}}.tar")) == 12
    assert open_dataset(f"{tmp_path}/mine-train-*.tar").split == {}
    assert find_shards(tmp_path / "mine-val-0000.tar") == []  # a single archive is unpacked
    for pattern, message in (
        ("mine-train-{0000..0002}.tar", "1 of 3 shards"),
        ("no-*.tar", "no shard matches"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(f"{tmp_path}/{pattern}")
    write_tar(tmp_path / "mine-val-0000.tar", {"a/1.jpg": jpeg(1), "c/1.jpg": jpeg(2)})
    with pytest.raises(DataError, match="val .*missing b, extra c"):
        open_dataset(tmp_path)
    write_tar(tmp_path / "mine-more.tar", {"a/1.jpg": jpeg(1)})
    with pytest.raises(DataError, match="not clear"):
        open_dataset(tmp_path)
    files = {f"{split}/{name}/1.jpg": jpeg(1) for split in ("Train", "dev") for name in "ab"}
    write_tar(tmp_path / "one/set.tar", files)
    assert sorted(open_dataset(tmp_path / "one").split.values()) == ["train", "train", "val", "val"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.jpg": b"x", "2.jpg": b"y"}, "2 of 2 photos.*have no label"),
        ({"a/1.jpg": b"x"}, "one class only"),
        ({"a/notes.txt": b"x"}, "hold no photos"),
        ({"1.jpg": b"x", "1.json": b"{"}, "is not a file with a label"),
        ({"1.jpg": b"x", "1.json": b"7"}, "is not a file with a label"),
        ({"1.jpg": b"x", "1.cls": b"\xff"}, "is not a file with a label"),
        ({"../a/1.jpg": b"x"}, "unsafe path"),
        ({"/a/1.jpg": b"x"}, "unsafe path"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, files, message):
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_numbers_beyond_the_list_of_names(tmp_path):
    write_tar(tmp_path / "0.tar", {"1.jpg": b"x", "1.cls": b"0", "2.jpg": b"x", "2.cls": b"2"})
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="2 names, but the labels go up to 2"):
        open_dataset(tmp_path)


def test_an_error_names_the_bad_image_in_a_shard(folders):
    write_tar(folders / "part-2.tar", {"rose/bad.jpg": jpeg(3)[:300], "tulip/good.jpg": jpeg(4)})
    dataset = open_dataset(folders)
    errors = [found.error for found in inspect_images(dataset, workers=1) if found.error]
    assert len(errors) == 1 and "part-2.tar/rose/bad.jpg" in errors[0]


@pytest.mark.parametrize("end", [100, 512 + 4, 1024 + 512])
def test_truncated_shards(tmp_path, end):
    write_tar(tmp_path / "0.tar", {"a/1.jpg": b"x" * 512, "b/1.jpg": b"y" * 512})
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:end])
    with pytest.raises(DataError, match=r"0\.tar (is cut off|is not a valid uncompressed tar)"):
        open_dataset(tmp_path)


def test_links_compression_and_doubles(tmp_path):
    write_tar(tmp_path / "0.tar", {"a/1.jpg": b"x"})
    with tarfile.open(tmp_path / "0.tar", "a") as content:
        for kind, name in (
            (tarfile.SYMTYPE, "a/2.jpg"),
            (tarfile.LNKTYPE, "a/3.jpg"),
            (tarfile.FIFOTYPE, "a/4.jpg"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            content.addfile(link)
    assert set(members(tmp_path / "0.tar")) == {"a/1.jpg"}
    with tarfile.open(tmp_path / "1.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="not a valid uncompressed tar"):
        members(tmp_path / "1.tar")
    with tarfile.open(tmp_path / "2.tar", "w") as content:
        for _ in range(2):
            content.addfile(tarfile.TarInfo("a/1.jpg"))
    with pytest.raises(DataError, match="twice"):
        members(tmp_path / "2.tar")
    with pytest.raises(DataError, match="cannot read"):
        members(tmp_path / "absent.tar")
    with pytest.raises(DataError, match="holds no a/9.jpg"):
        open_member(tmp_path / "0.tar", "a/9.jpg")


def test_a_member_reads_like_a_file(tmp_path):
    data = bytes(range(256)) * 700
    write_tar(tmp_path / "0.tar", {"a/1.bin": b"before" * 99, "a/2.bin": data, "a/3.bin": b"behind" * 99})
    with open_member(tmp_path / "0.tar", "a/2.bin") as file:
        assert file.read() == data and file.read(5) == b""
        assert file.seek(-10, 2) == len(data) - 10 and file.read(99) == data[-10:]
        file.seek(1000)
        assert file.read(300) == data[1000:1300] and file.tell() == 1300


def test_a_huge_member_is_not_read(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", {"a/1.jpg": bytes(1001)})
    monkeypatch.setattr(tar_members, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="larger than 1,000 bytes"):
        open_member(tmp_path / "0.tar", "a/1.jpg")


def test_a_rewritten_shard_is_listed_again(tmp_path):
    write_tar(tmp_path / "0.tar", {"a/1.jpg": b"x"})
    assert set(members(tmp_path / "0.tar")) == {"a/1.jpg"}
    write_tar(tmp_path / "0.tar", {"a/1.jpg": b"x", "a/2.jpg": b"y" * 20_000})
    assert set(members(tmp_path / "0.tar")) == {"a/1.jpg", "a/2.jpg"}


def header(kind: bytes, size: int, body: bytes = b"") -> bytes:
    """A tar header of any size, negative ones too, with the blocks of its body."""
    info = tarfile.TarInfo("a/1.jpg")
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (
        (size % 256**11 + (255 if size < 0 else 128) * 256**11).to_bytes(12, "big")
        if not 0 <= size < 8**11
        else b"%011o\0" % size
    )
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    return bytes(data) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize("kind", [b"0", b"Z"])
def test_a_negative_size_does_not_lead_back(tmp_path, kind):
    """tarfile would read the same header forever."""
    (tmp_path / "0.tar").write_bytes(header(b"0", 0) + header(kind, -512) + bytes(10240))
    code = "import sys, pathlib; from flowers_torch.data.tar_members import members; members(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "0.tar")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert "DataError" in ended.stderr and "0.tar" in ended.stderr


@pytest.mark.parametrize("size", [-1024, 1 << 21, 1 << 40])
def test_extended_headers_are_read_up_to_a_megabyte(tmp_path, size):
    (tmp_path / "0.tar").write_bytes(header(b"x", size, b"11 path=abc") + header(b"0", 5, b"12345") + bytes(10240))
    with pytest.raises(DataError, match=r"0\.tar is not a valid uncompressed tar.*claims"):
        members(tmp_path / "0.tar")


def test_headers_of_headers_are_one_line(tmp_path):
    (tmp_path / "0.tar").write_bytes(header(b"L", 5, b"1.jpg") * 2000 + header(b"0", 0) + bytes(10240))
    with pytest.raises(DataError, match=r"0\.tar is not a valid uncompressed tar"):
        members(tmp_path / "0.tar")


@pytest.mark.parametrize("label", [b"9" * 5000, b"x" * 201])
def test_labels_of_any_length_are_refused_in_one_line(tmp_path, label):
    write_tar(tmp_path / "0.tar", {"1.jpg": b"x", "1.cls": label, "2.jpg": b"y", "2.cls": b"1"})
    with pytest.raises(DataError, match=r"0\.tar/1\.cls is not a file with a label: its label has more than 200"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("value", ["[" * 100_000, '{"label": {}}', '{"label": NaN}', '{"label": null}', "7" * 5000])
def test_json_labels_that_no_program_writes(tmp_path, value):
    write_tar(tmp_path / "0.tar", {"1.jpg": b"x", "1.json": value.encode(), "2.jpg": b"y", "2.cls": b"1"})
    with pytest.raises(DataError, match=r"0\.tar/1\.json is not a file with a label"):
        open_dataset(tmp_path)


def test_long_numbers_are_names(tmp_path):
    write_tar(tmp_path / "0.tar", {"1.jpg": b"x", "1.cls": b"9" * 190, "2.jpg": b"y", "2.cls": b"1"})
    (tmp_path / "classes.txt").write_text("rose\ntulip\n")
    assert open_dataset(tmp_path).classes == ("1", "9" * 190)


def test_members_are_a_mapping_in_little_memory():
    """Names of any bytes, one the beginning of another, and names that are not there."""
    places = {f"{c}/{n}.jpg": (n * 10**10, n) for c in ("a", "a/b", "rose \U0001f339", "\udcff") for n in range(50)}
    found = tar_members.Members(places | {"": (1, 2)})
    assert dict(found) == places | {"": (1, 2)} and len(found) == 201
    assert "a" not in found and "zz" not in found and found.get("a/1.jp") is None
    assert dict(tar_members.Members({})) == {} and "" not in tar_members.Members({})
    many = tar_members.Members({f"species_007/IMG_{n:09}.jpg": (n, n) for n in range(10_000)})
    assert sum(sys.getsizeof(part) for part in vars(many).values()) < 70 * 10_000
