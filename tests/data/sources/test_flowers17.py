"""Flowers-17 from an archive, from the network and from Oxford's split file, with substitute data."""

import functools
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config import Config
from flowers_torch.data.images import load_image
from flowers_torch.data.sources import flowers17 as module
from flowers_torch.data.sources.flowers17 import CLASSES, PATHS, flowers17, official_split
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.errors import DataError, ResourceError, UsageError
from flowers_torch.runs.dataset import choose_splits, open_images

SHARED = Path(os.environ.get("FLOWERS_TORCH_SHARED", ""))


def packed(names=PATHS) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name in (*reversed(names), "jpg/files.txt"):
            data = hashlib.sha256(name.encode()).digest()  # substitute data: no test decodes it
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def content() -> bytes:
    return packed()


@pytest.fixture(scope="module")
def dataset(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers17")
    (folder / "mine.tgz").write_bytes(content)
    return flowers17(folder / "mine.tgz", folder / "cache")


def test_every_80_images_belong_to_a_class(dataset):
    assert dataset.name == "flowers17" and dataset.classes == CLASSES and len(dataset) == 1360
    assert dataset.counts() == [80] * 17
    labels = dict(zip(dataset.paths, dataset.labels, strict=True))
    assert labels["jpg/image_0080.jpg"] == CLASSES.index("daffodil")
    assert labels["jpg/image_0081.jpg"] == CLASSES.index("snowdrop")
    assert labels["jpg/image_1360.jpg"] == CLASSES.index("pansy")
    assert all((dataset.root / path).is_file() for path in dataset.paths[::100])
    assert "not Oxford's own file" in dataset.notes[0]


def test_other_content_is_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(packed(PATHS[:-2]))
    with pytest.raises(DataError, match="2 of 1360 photos missing"):
        flowers17(tmp_path / "a.tgz", tmp_path / "cache")
    (tmp_path / "b.tgz").write_bytes(packed((*PATHS, "jpg/image_1361.jpg")))
    with pytest.raises(DataError, match="1 others.*image_1361"):
        flowers17(tmp_path / "b.tgz", tmp_path / "cache")


def test_archive_and_folder_are_recognized(tmp_path, content, dataset):
    (tmp_path / "anything.tar.gz").write_bytes(content)
    assert open_dataset(tmp_path / "anything.tar.gz", tmp_path / "cache").labels == dataset.labels
    assert open_dataset(dataset.root, tmp_path / "cache").classes == CLASSES
    assert len(list((tmp_path / "cache").iterdir())) == 1  # unpacked once


class Server(http.server.BaseHTTPRequestHandler):
    """Serves bytes with Range support; `cut` closes the connection after so many bytes, once."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        self.state["requests"].append(self.headers.get("Range"))
        body = self.state["body"]
        if self.state.get("status"):
            return self.send_error(self.state["status"])
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.state.pop("cut", None)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(content, monkeypatch):
    state = {"body": content, "requests": []}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{httpd.server_port}/17flowers.tgz")
        monkeypatch.setattr(module, "MD5", hashlib.md5(content).hexdigest())
        yield state
        httpd.shutdown()
        thread.join()


def test_downloads_once(server, tmp_path):
    steps = []
    first = open_dataset("flowers17", tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert first.notes == () and first.counts() == [80] * 17
    assert steps[-1] == (len(server["body"]), len(server["body"]))
    (tmp_path / "17flowers.tgz").unlink()  # the unpacked files are enough
    assert open_dataset("flowers17", tmp_path) == first and len(server["requests"]) == 1


def test_a_cut_download_is_continued(server, tmp_path):
    server["cut"] = len(server["body"]) // 2
    with pytest.raises(ResourceError, match=r"127.0.0.1.*--data FOLDER, --data path/to/17flowers.tgz, or --data demo"):
        open_dataset("flowers17", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["17flowers.tgz.part"]
    assert len(open_dataset("flowers17", tmp_path)) == 1360
    assert server["requests"][1] == f"bytes={len(server['body']) // 2}-"


def test_a_wrong_archive_leaves_nothing(server, tmp_path):
    server["body"] = server["body"][:-1] + b"!"
    with pytest.raises(ResourceError, match="expected"):
        open_dataset("flowers17", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_line_with_three_ways_on(server, tmp_path):
    server["status"] = 404
    with pytest.raises(ResourceError, match=r"^cannot fetch http.*Not Found.*fix: .*--data demo$") as error:
        open_dataset("flowers17", tmp_path)
    assert error.value.exit_code == 6 and "\n" not in str(error.value)


@pytest.fixture
def splits_file():
    """Oxford's file has 1-based ids in rows of uint16, named trn1 to tst3."""
    scipy_io = pytest.importorskip("scipy.io")
    content, rng = {}, np.random.default_rng(0)
    for which in (1, 2, 3):
        ids = rng.permutation(1360).astype(np.uint16)[None] + 1
        content |= {
            f"trn{which}": ids[:, :680],
            f"val{which}": ids[:, 680:1020],
            f"tst{which}": ids[:, 1020:],
        }
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, content, do_compression=True)
    return buffer.getvalue(), content


@pytest.mark.parametrize("where", ["beside the archive", "in the cache"])
def test_official_splits(tmp_path, content, splits_file, where):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/17flowers.tgz").write_bytes(content)
    folder = tmp_path / ("in" if where == "beside the archive" else "cache")
    folder.mkdir(exist_ok=True)
    (folder / "datasplits.mat").write_bytes(splits_file[0])
    dataset = flowers17(tmp_path / "in/17flowers.tgz", tmp_path / "cache")
    for which in (1, 2, 3):
        splits = official_split(dataset, which, tmp_path / "cache")
        assert [len(splits[split]) for split in ("train", "val", "test")] == [680, 340, 340]
        assert sorted(i + 1 for i in splits["test"]) == sorted(splits_file[1][f"tst{which}"].ravel())
        assert sorted(sum(splits.values(), [])) == list(range(1360))


def test_invalid_official_splits(dataset, splits_file, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="1, 2 and 3, not 4"):
        official_split(dataset, 4)
    path = dataset.root / "datasplits.mat"
    for wrong in (b"", b"words" * 100, splits_file[0][:2000]):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"datasplits\.mat"):
            official_split(dataset, 1)
    import scipy.io

    numbers = splits_file[1]["val1"]
    for wrong in (numbers, numbers * np.nan, numbers * 1e300):
        scipy.io.savemat(path, splits_file[1] | {"tst1": wrong})
        with pytest.raises(DataError, match="is not a split of the 1360 photos"):
            official_split(dataset, 1)
    path.unlink()
    monkeypatch.setattr(module, "SPLITS_URL", (tmp_path / "none").as_uri())
    with pytest.raises(ResourceError, match="beside the archive"):
        official_split(dataset, 1, tmp_path)


def jpeg(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (color % 256, color // 256 * 40, 90)).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize("split", ["oxford1", "tutorial"])
def test_an_exclude_list_moves_no_photo_of_a_named_split(tmp_path, splits_file, monkeypatch, split):
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos/jpg").mkdir(parents=True)
    for number, name in enumerate(PATHS):
        (tmp_path / "photos" / name).write_bytes(jpeg(number))
    (tmp_path / "mat").write_bytes(splits_file[0])
    monkeypatch.setattr(module, "SPLITS_URL", (tmp_path / "mat").as_uri())
    monkeypatch.setattr(module, "SPLITS_MD5", hashlib.md5(splits_file[0]).hexdigest())
    excluded = [PATHS[0], PATHS[700]]
    (tmp_path / "list.csv").write_text("file,reason\n" + "".join(f"{name},x\n" for name in excluded))
    parts = []
    for exclude in ("", str(tmp_path / "list.csv")):
        config = Config(data=str(tmp_path / "photos"), split=split, groups="none", exclude=exclude, seed=1)
        filtered = open_images(config)
        splits = choose_splits(filtered.dataset, config, filtered.duplicates)
        parts.append({part: {filtered.dataset.paths[i] for i in members} for part, members in splits.items()})
    if split == "oxford1":
        assert parts[0]["test"] == {PATHS[i - 1] for i in splits_file[1]["tst1"].ravel()}
    assert parts[1] == {part: members - set(excluded) for part, members in parts[0].items()}
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["jpg"]


def test_a_folder_called_flowers17_is_only_a_folder(photo_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(photo_folder, tmp_path / "flowers17")
    monkeypatch.setattr(module, "SPLITS_URL", (tmp_path / "none").as_uri())
    flags = ["--data", str(tmp_path / "flowers17"), *"--arch test_resnet --weights none --size 32".split()]
    assert main(["train", *flags, "--split", "oxford1"]) == 2
    assert "--split oxford1 is for flowers17 only" in capsys.readouterr().err
    assert not (tmp_path / "flowers17/datasplits.mat").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/17flowers.tgz").is_file(), reason="needs FLOWERS_TORCH_SHARED")
def test_the_real_archive(tmp_path):
    dataset = open_dataset(SHARED / "data/17flowers.tgz", tmp_path)
    assert dataset.counts() == [80] * 17
    assert load_image(dataset.root / dataset.paths[0]).mode == "RGB"
