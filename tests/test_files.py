"""Atomic files; tensors that are read as they were written, or not at all."""

import _codecs
import argparse
import contextlib
import datetime
import enum
import functools
import gc
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from flowers_torch.errors import FlowersError, ModelFileError, ResourceError, printable
from flowers_torch.files import atomic as files
from flowers_torch.files import tensors as tensors_module
from flowers_torch.files.atomic import atomic_write, open_own, write_csv, write_json
from flowers_torch.files.cache import cache_folder, recall, remember
from flowers_torch.files.download import download
from flowers_torch.files.tensors import load_groups, safe_load, safe_save

ROOT = Path(__file__).parent.parent
TENSORS = {
    "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 2),
}


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    safe_save(TENSORS, tmp_path / "a.safetensors", {"classes": ["é", "\x1b[31m"], "n": 3})
    tensors, metadata = safe_load(tmp_path / "a.safetensors")
    assert metadata == {"classes": ["é", "\x1b[31m"], "n": 3}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safe_save(TENSORS, path, {"n": 3})
    original, content = safe_load(path), bytearray(path.read_bytes())
    refused = 0
    for position in range(len(content)):
        content[position] ^= 0x11
        path.write_bytes(content)
        content[position] ^= 0x11
        try:
            tensors, metadata = safe_load(path)
        except ModelFileError:
            refused += 1
            continue
        assert metadata in (original[1], {})  # {}: the name of the checksum was hit

        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert refused > 0.9 * len(content)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safe_save(TENSORS, path, {"n": 3})
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            safe_load(path)


def test_all_dicts_of_tensors_are_found_but_the_optimizers(tmp_path: Path) -> None:
    weights, twice = {"a": torch.ones(2)}, {"a": 2 * torch.ones(2), "b": 3}
    content = {"epoch": 3, "state_dict": weights, "inner": {"ema": twice}, "optimizer": weights, "callbacks": [weights]}
    torch.save(content, tmp_path / "a.pth")
    groups, metadata, others = load_groups(tmp_path / "a.pth")
    assert list(groups) == ["state_dict", "inner.ema"] and list(groups["inner.ema"]) == ["a"] and metadata == {}
    assert torch.equal(groups["inner.ema"]["a"], twice["a"]) and others == content.keys()  # type: ignore[arg-type]


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"model": {"a": torch.ones(2)}}
    content |= {f"self{number}": content for number in range(9)}
    torch.save(content, tmp_path / "a.pth")
    assert list(load_groups(tmp_path / "a.pth").groups) == ["model"]


class Mode(enum.Enum):
    FAST = 1


class OldMode(enum.Enum):
    """Written as Python 3.11.0 to 3.11.3 writes an enum."""

    FAST = 1

    def __reduce_ex__(self, protocol: object) -> tuple[object, tuple[object, ...]]:
        return getattr, (self.__class__, self.name)


class Settings(dict[str, int]):
    """A dict of a class that nobody but its author has, such as Lightning's AttributeDict."""


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, mode=Mode.FAST, out=Path("runs")),
    "numbers": (np.float32(0.3), np.int64(2), np.random.default_rng(0).random(3), np.dtype("float32")),
    "generator": np.random.RandomState(0).get_state(),
    "enum": {Mode.FAST: 1},
    "enum of Python 3.11.0": {OldMode.FAST: 1},
    "path": Path("runs"),
    "a class of a stranger": OrderedDict(config=Settings(lr=1)),
    "standard library": [datetime.timedelta(1), defaultdict(list, a=[1]), range(3), {Path("x")}],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_objects_beside_the_tensors_become_placeholders(tmp_path: Path, kind: str, zipped: bool) -> None:
    content = {"args": BESIDE[kind], "state_dict": {"a": torch.ones(2)}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    with warnings.catch_warnings(action="error"):
        assert torch.equal(safe_load(tmp_path / "a.pth")[0]["a"], torch.ones(2))
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_number_of_foreign_classes_is_bounded(tmp_path: Path) -> None:
    names = b"".join(b"ca.b\nC%d\n" % number for number in range(300))
    (tmp_path / "a.pth").write_bytes(b"\x80\x02" + names + b".")
    with pytest.raises(ModelFileError, match="it names 300 classes"):
        safe_load(tmp_path / "a.pth")


def test_a_whole_network_gives_its_tensors(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Sequential(torch.nn.BatchNorm2d(4)))
    torch.save({"model": network, "date": None}, tmp_path / "a.pth")
    found, expected = safe_load(tmp_path / "a.pth")[0], network.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in found.values())


class Canary:
    """Creates a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_without_bad_advice(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "ran"
    torch.save({"a": Canary(str(canary))}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelFileError, match="mkdir") as caught:
        safe_load(tmp_path / "a.pth")
    assert not canary.exists()
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_calls_of_pythons_own_library_are_refused(tmp_path: Path) -> None:
    """A placeholder would do nothing; but such a file is an attack, and its weights are none to train on."""
    (tmp_path / "precious").mkdir()
    content = {"state_dict": {"a": torch.ones(2)}, "other": Call(shutil.rmtree, str(tmp_path / "precious"))}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"holds more than tensors and is not loaded \(shutil.rmtree\)"):
        safe_load(tmp_path / "a.pth")
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("content", [b"", b"<html>" * 9, b"\x1f\x8b" * 20, b"\xff" * 7 + b"\x7f{" + b"x" * 40])
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"odd\.pth"):
        safe_load(tmp_path / "odd.pth")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No space left"), atomic_write(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.needs("linux")
def test_a_save_writes_syncs_renames_and_syncs_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", replace)
    write_json(tmp_path / "a.json", {"n": 1})
    assert calls == ["file", "rename", "folder"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"n": 1}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; understands `Range: bytes=N-`, and cuts the connection after `cut` bytes."""

    cut = 0
    pause = 0.0  # seconds in the middle of the content
    ranges: list[str] = []

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        content = content[start:][: self.cut or None]
        self.wfile.write(content[:1000])
        time.sleep(self.pause)
        with contextlib.suppress(OSError):  # the client is gone
            self.wfile.write(content[1000:])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, type[Handler]]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Own(Handler):
        ranges: list[str] = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Own, directory=folder)) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", folder, Own
        http_server.shutdown()
        thread.join()


def test_a_cut_download_goes_on_where_it_stopped(tmp_path: Path, server: tuple[str, Path, type[Handler]]) -> None:
    address, folder, handler = server
    content = bytes(range(256)) * 40
    (folder / "x.bin").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    handler.cut = 1000
    with pytest.raises(ResourceError, match="1000 of 10240"):
        download(f"{address}/x.bin", tmp_path / "x.bin", digest)
    assert not (tmp_path / "x.bin").exists()
    handler.cut = 0
    assert download(f"{address}/x.bin", tmp_path / "x.bin", digest).read_bytes() == content
    assert handler.ranges == ["", "bytes=1000-"]


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, server: tuple[str, Path, type[Handler]]) -> None:
    address, folder, _ = server
    (folder / "x.bin").write_bytes(b"something else")
    with pytest.raises(ResourceError, match="sha256"):
        download(f"{address}/x.bin", tmp_path / "x.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == [folder]


def fetch_in_parallel(address: str, folder: Path, digest: str, count: int = 3) -> list[subprocess.Popen[str]]:
    program = "import sys; from pathlib import Path; from flowers_torch.files.download import download; "
    program += "print(download(sys.argv[1], Path(sys.argv[2]), sys.argv[3]).stat().st_size)"
    words = [sys.executable, "-c", program, f"{address}/x.bin", str(folder / "new" / "x.bin"), digest]
    return [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def test_parallel_first_downloads_both_succeed(tmp_path: Path, server: tuple[str, Path, type[Handler]]) -> None:
    address, folder, handler = server
    content = bytes(range(256)) * 4000
    (folder / "x.bin").write_bytes(content)
    handler.pause = 0.3  # in the middle of the content
    processes = fetch_in_parallel(address, tmp_path, hashlib.sha256(content).hexdigest())
    assert [process.communicate()[0] for process in processes] == [f"{len(content)}\n"] * 3
    assert (tmp_path / "new" / "x.bin").read_bytes() == content and handler.ranges == [""]


def test_a_killed_download_frees_the_lock(tmp_path: Path, server: tuple[str, Path, type[Handler]]) -> None:
    address, folder, handler = server
    content = bytes(range(256)) * 4000
    (folder / "x.bin").write_bytes(content)
    handler.pause, digest = 60, hashlib.sha256(content).hexdigest()
    (process,) = fetch_in_parallel(address, tmp_path, digest, 1)
    while not handler.ranges:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    handler.pause = 0
    assert download(f"{address}/x.bin", tmp_path / "new" / "x.bin", digest).read_bytes() == content


def test_a_file_system_without_locks(
    tmp_path: Path, server: tuple[str, Path, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: object) -> None:
        raise NotImplementedError("no locks here")

    address, folder, _ = server
    (folder / "x.bin").write_bytes(b"content")
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    path = download(f"{address}/x.bin", tmp_path / "new" / "x.bin", hashlib.sha256(b"content").hexdigest())
    assert [path] == list((tmp_path / "new").iterdir()) and path.read_bytes() == b"content"


@pytest.mark.needs("linux")
def test_a_folder_that_cannot_hold_downloads_is_named_with_the_flag(
    tmp_path: Path, server: tuple[str, Path, type[Handler]]
) -> None:
    address, folder, _ = server
    (folder / "x.bin").write_bytes(b"content")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "x.bin", Path("/proc/none/x.bin"), Path(os.devnull, "no home", "x.bin")):
        with pytest.raises(ResourceError, match="cannot fetch .*fix: .*--cache or FLOWERS_TORCH_CACHE"):
            download(f"{address}/x.bin", place, "0" * 64)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib leaves its socket open
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
        b"\x1b[2J\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"",
    ],
)
def test_a_hostile_server_costs_one_line(head: bytes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def reply() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(head)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(ResourceError, match="fix: do this") as caught:
            download(f"http://127.0.0.1:{port}/x", tmp_path / "x", "0" * 64, ways_on="do this")
        thread.join()
    assert str(caught.value).isprintable() and not (tmp_path / "x").exists()
    del caught
    gc.collect()


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    remember(tmp_path / "file" / "x.json", {"n": 1})
    assert "cannot write" in caplog.text and "computed again" in caplog.text


def test_without_a_home_only_downloads_need_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FLOWERS_TORCH_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    folder = cache_folder()
    remember(folder / "x.json", {})
    assert recall(folder / "x.json", {}) is None


@pytest.mark.needs("modes")
def test_new_files_have_the_mode_of_any_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)  # changing it would change it for other threads
        write_json(tmp_path / "x.json", {})
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640
    write_json(tmp_path / ("ü" * 120), {})  # the temporary name is short enough too


@pytest.mark.needs("links", "pipes")
def test_a_file_behind_a_link_is_not_opened_in_place(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.link(tmp_path / "precious", tmp_path / "second name")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "second name", "pipe"):
        with pytest.raises(OSError), open(tmp_path / name, "a+", opener=open_own):
            pass
    with open(tmp_path / "own", "a", opener=open_own) as file:
        file.write("x")
    assert (tmp_path / "precious").read_text() == "as it was" and not (tmp_path / "new").exists()


def test_a_file_that_was_fetched_earlier_is_checked(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"good")
    digest = hashlib.sha256(b"good").hexdigest()
    os.utime(tmp_path, ns=(10**18, 10**18))
    assert download("http://127.0.0.1:9/x", tmp_path / "x", digest).read_bytes() == b"good"
    assert tmp_path.stat().st_mtime_ns == 10**18  # not even a lock was made: the folder may be read-only
    (tmp_path / "x").write_bytes(b"goof")
    with pytest.raises(ResourceError, match="x is damaged: its sha256 is .*fix: delete it"):
        download("http://127.0.0.1:9/x", tmp_path / "x", digest)


def test_no_network_is_one_line_with_ways_on(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot fetch http://127.0.0.1:9/x .*fix: do this") as caught:
        download("http://127.0.0.1:9/x", tmp_path / "x", "0", ways_on="do this")
    assert "\n" not in str(caught.value)


def test_names_from_strangers_cannot_reach_the_terminal() -> None:
    assert printable("a\x1b[31m\nb\udcff") == "a\\x1b[31m\\nb\\udcff"
    assert len(printable("x" * 10_000)) < 250


def test_errors_survive_a_data_loader_worker() -> None:
    trace = 'Original Traceback (most recent call last):\n  File "x.py", line 1\nFlowersError: a: b; fix: c\n'
    rebuilt = FlowersError(f"Caught FlowersError in DataLoader worker process 0.\n{trace}")  # as torch does
    assert str(rebuilt) == "a: b; fix: c"


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("a/code/constants.pkl", "a TorchScript program"),
        ("a/archive_format", "an exported program"),
        ("photo.jpg", "a zip archive without weights"),
    ],
)
def test_other_archives_are_refused_by_name(member: str, kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr(member, b"x" * 99)
    with pytest.raises(ModelFileError, match=f"a.pth is {kind}.*, expected .safetensors or .pth"):
        safe_load(tmp_path / "a.pth")


def test_a_torch_too_old_to_be_safe_opens_no_pth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ModelFileError, match="torch 2.9.1.cpu cannot read"):
        safe_load(tmp_path / "a.pth")


class Storage:
    """Stands for a tensor's storage while a hostile file is being made."""


class Huge:
    """Pickles as a tensor of so many floats, whatever the file holds of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, (Storage(), 0, (self.count,), (1,), False, OrderedDict())


def huge_pickle(count: int) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"weight": Huge(count)})
    return stream.getvalue()


def greedy_files(folder: Path) -> Iterator[Path]:
    """Small files that want much memory or time."""

    def archive(name: str, count: int, method: int, data: bytes) -> Path:
        with zipfile.ZipFile(folder / name, "w", method) as file:
            file.writestr("a/data.pkl", huge_pickle(count))
            file.writestr("a/byteorder", "little")
            file.writestr("a/version", "3\n")
            file.writestr("a/data/0", data)
        return folder / name

    def safetensors(name: str, header: object, data: bytes) -> Path:
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)
        return folder / name

    yield archive("terabyte.pth", 2**38, zipfile.ZIP_STORED, b"\0" * 64)
    yield archive("bomb.pth", 2**22, zipfile.ZIP_DEFLATED, bytes(2**24))
    (folder / "deep.pth").write_bytes(b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".")
    yield folder / "deep.pth"
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{" + b" " * 99)
    yield folder / "header.safetensors"
    both = {"a": [0, 16], "b": [8, 24]}
    overlap = {n: {"dtype": "F32", "shape": [4], "data_offsets": where} for n, where in both.items()}
    yield safetensors("overlap.safetensors", overlap, bytes(24))
    far = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    yield safetensors("far.safetensors", far, bytes(24))
    wrap = {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}
    yield safetensors("wrap.safetensors", wrap, bytes(16))


@pytest.mark.needs("linux")
def test_greedy_files_are_refused_cheaply(tmp_path: Path) -> None:
    import resource

    for path in greedy_files(tmp_path):
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ModelFileError, match=path.name):
            safe_load(path)
        assert time.process_time() - started < 2, path.name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, path.name  # KiB


def test_what_is_not_a_plain_tensor_is_refused_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for odd, reason in (
        (torch.zeros(3).to_sparse(), "sparse_coo on cpu"),
        (torch.empty(3, device="meta"), "strided on meta"),
        (torch.zeros(3, dtype=torch.float8_e5m2), "float8_e5m2"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(1).expand(10**6, 10**6), "much more than its bytes"),
    ):
        torch.save({"a": torch.ones(2), "b": odd}, path)
        with pytest.raises(ModelFileError, match=rf"a\.pth is not a valid weights file: .*{reason}"):
            safe_load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, path)
    with pytest.raises(ModelFileError, match="qint8"):  # torch warns while it loads them
        safe_load(path)
    torch.save({1: torch.ones(2)}, path)
    with pytest.raises(ModelFileError, match=r"a\.pth has no state dict of tensors"):
        safe_load(path)


class Call:
    """Pickles as a call of a function that torch's safe loader allows."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        (bytearray, 10**7),
        (_codecs.encode, "\u00e9\u4e00" * 9, "punycode"),
        (_codecs.encode, "latin1", "punycode"),
        (_codecs.encode, "a" * 2**21, "latin1"),
    ],
)
def test_a_pickle_is_not_asked_for_bytes(tmp_path: Path, call: tuple[object, ...], zipped: bool) -> None:
    content = {"state_dict": {"a": torch.ones(2)}, "other": Call(*call)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelFileError, match="it holds bytes"):
        safe_load(tmp_path / "a.pth")


def test_a_zip_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    at = content.rfind(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2**30, 2**30)  # compressed and uncompressed size
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match="claims to hold much more"):
        safe_load(tmp_path / "a.pth")


def test_the_numbers_of_tensors_and_of_lists_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(30_001)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelFileError, match="30,001 tensors"):
        safe_load(path)
    few = {f"t{i}": torch.zeros(0) for i in range(15_001)}
    torch.save({"model": few, "ema": dict(few)}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="30,002 tensors"):
        safe_load(tmp_path / "a.pth")
    safe_save({}, path, {"x": [[]] * 200_000})
    with pytest.raises(ModelFileError, match="more than 200,000 lists"):
        safe_load(path)
    for broken in ("[" * 100_000, "{", "9" * 5000):
        texts = {"x": broken}
        texts["sha256"] = json.dumps(tensors_module._checksum({}, texts))
        path.write_bytes(safetensors.torch.save({}, texts))
        with pytest.raises(ModelFileError, match=r"a\.safetensors is not a valid weights file"):
            safe_load(path)


def test_rows_of_a_csv_file_may_have_different_columns(tmp_path: Path) -> None:
    """As those of a damaged checkpoint."""
    write_csv(tmp_path / "a.csv", [{"a": 1, "": 2}, {"a": 3, "b": 4}])
    assert (tmp_path / "a.csv").read_text() == "a,,b\n1,2,\n3,,4\n"
