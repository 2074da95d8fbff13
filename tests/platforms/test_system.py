"""files/system.py: what it finds on this machine, and its substitutes for what another one lacks."""

import errno
import ntpath
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.errors import DataError
from flowers_torch.files import system

pytestmark = pytest.mark.needs("linux")  # it is simulated from there to the others


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("800000 100000", 8), ("", 8), ("broken", 8)],
)
def test_cores_of_a_container(limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(system, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert system.usable_cores() == cores


def test_waiting_for_a_core_is_summed_over_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "PROCESS", tmp_path)
    assert 0 <= system.waiting_seconds() <= system.waiting_seconds() + 1e-3  # without the counts of Linux
    for thread, text in {"7": "900 2000000000 3", "8": "100 500000000 1", "9": ""}.items():
        (tmp_path / "task" / thread).mkdir(parents=True)
        (tmp_path / "task" / thread / "schedstat").write_text(text)
    (tmp_path / "schedstat").write_text("900 2000000000 3")
    assert system.waiting_seconds() == 2.5


@pytest.mark.parametrize(("quota", "cores"), [("150000", 2), ("-1", 8), ("100000", 1), ("broken", 8)])
def test_a_container_of_the_first_version_of_control_groups(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(system, "CGROUP", tmp_path / "none")
    physical = system.total_memory()
    monkeypatch.setattr(system, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert system.usable_cores() == cores
    for limit, total in ((1 << 27, 1 << 27), (9223372036854771712, physical)):  # the second means none
        (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{limit}\n")
        assert system.total_memory() == total


def test_cores_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "CGROUP", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert system.usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.usable_cores() == 1


def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "CGROUP", tmp_path)
    physical = system.total_memory()
    assert physical is not None and physical > 1 << 28
    (tmp_path / "memory.max").write_text("max\n")
    assert system.total_memory() == physical
    (tmp_path / "memory.max").write_text(f"{1 << 27}\n")
    assert system.total_memory() == 1 << 27
    monkeypatch.delattr(os, "sysconf")
    assert system.total_memory() == 1 << 27
    (tmp_path / "memory.max").unlink()
    assert system.total_memory() is None


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("rose", "rose"),
        ("CON", "_CON"),
        ("nul.jpg", "_nul.jpg"),
        ("com1 .txt", "_com1 .txt"),
        ("console", "console"),
        ("a/b:c", "a_b_c"),
        ("ends. .", "ends"),
        ("..", "_"),
        ("", "_"),
        ("rosé 玫瑰", "rosé 玫瑰"),
        ("line\nbreak", "line_break"),
        ("x" * 99 + ". y", "x" * 99),
    ],
)
def test_names_that_every_system_accepts(name: str, valid: str) -> None:
    assert system.valid_name(name) == valid


def test_names_that_are_one_on_macos_and_windows() -> None:
    assert system.caseless("Rose") == system.caseless("rOSE") != system.caseless("Roses")
    assert system.caseless("e\u0301te") == system.caseless("\u00c9TE")


def test_a_disk_that_ignores_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not system.ignores_case(tmp_path)
    real = os.path.samefile
    monkeypatch.setattr(os.path, "samefile", lambda one, other: real(*(str(each).lower() for each in (one, other))))
    folder = tmp_path / "rose"
    folder.mkdir()
    assert system.ignores_case(folder) and system.ignores_case(folder / "not" / "there" / "12")
    monkeypatch.setattr(os.path, "samefile", lambda one, other: False)  # two folders
    assert not system.ignores_case(folder)


def test_folders_on_several_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.common_folder(["/a/b", "/a/c/d"]) == Path("/a")
    monkeypatch.setattr(system.os, "path", ntpath)
    with pytest.raises(DataError, match=r"several drives: C:, D:; fix: copy"):
        system.common_folder(["C:\\a", "D:\\b"])


@pytest.mark.parametrize("place", ["~no such user/photos", "~", "~/photos"])
def test_a_home_that_is_not_known_is_left_as_it_is(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an account, as in `docker run --user 12345`, makes `Path.expanduser` raise a RuntimeError."""
    import pwd

    def unknown(*arguments: object) -> None:
        raise KeyError("uid not found: 12345")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    assert system.expand_home(place) == Path(place)
    monkeypatch.setenv("HOME", "/home/me")
    assert system.expand_home("~/photos") == Path("/home/me/photos")


def test_a_file_that_is_open_elsewhere_is_replaced_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, real, closed = tmp_path / "new", tmp_path / "old", os.replace, threading.Event()
    source.write_text("new")

    def replace(one: Path, other: Path) -> None:
        if not closed.is_set():
            raise PermissionError(errno.EACCES, "used by another process")
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):  # Linux means a folder that cannot be written: waiting would not help
        system.replace(source, target)
    monkeypatch.setattr(system, "WINDOWS", True)
    threading.Timer(0.2, closed.set).start()
    system.replace(source, target)
    assert target.read_text() == "new"
    closed.clear()
    monkeypatch.setattr(system, "SECONDS_OF_OTHERS", 0.1)
    started = time.monotonic()
    with pytest.raises(PermissionError):
        system.replace(target, source)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    system.fsync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError):
        system.fsync_folder(tmp_path)


def test_links_are_relative_and_copies_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "photos" / "a.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"photo")
    (tmp_path / "sorted" / "rose").mkdir(parents=True)
    link = tmp_path / "sorted" / "rose" / "a.jpg"
    system.link_or_copy(photo, link)
    assert os.readlink(link) == "../../photos/a.jpg" and link.read_bytes() == b"photo"
    with pytest.raises(FileExistsError):
        system.link_or_copy(photo, link)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("photos", "sorted"):
        (tmp_path / name).rename(moved / name)
    assert (moved / "sorted" / "rose" / "a.jpg").read_bytes() == b"photo"

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    for number, symlink in enumerate((refuse, lambda target, link: None)):
        monkeypatch.setattr(os, "symlink", symlink)
        link = moved / f"{number}.jpg"
        system.link_or_copy(moved / "photos" / "a.jpg", link)
        assert link.read_bytes() == b"photo" and not link.is_symlink()


def test_a_limit_of_open_files_that_macos_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def refuse(*arguments: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert system.raise_file_limit(before[0] + 1) == before[0]
    monkeypatch.setitem(sys.modules, "resource", None)
    assert system.raise_file_limit(77) == 77


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(system.fcntl, "lockf", refuse)
    with (tmp_path / "lock").open("w") as file:
        assert system.lock_file(file)


def test_other_c_libraries_keep_their_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.ctypes, "CDLL", lambda name: object())
    assert not system.keep_freed_memory()


def test_signals_of_children_are_back_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    before = signal.getsignal(signal.SIGCHLD)
    with system.ignored_child_signals():
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGCHLD) == before
    monkeypatch.delattr(signal, "SIGCHLD")
    with system.ignored_child_signals():
        pass


@pytest.mark.parametrize(("name", "interface"), [("linux", "lo"), ("darwin", "lo0"), ("win32", "")])
def test_the_loopback_interface(name: str, interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", name)
    assert system.loopback_interface() == interface


def test_the_module_is_imported_without_fcntl() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; from flowers_torch.files import system; assert system.fcntl is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_builds_of_torch_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert (system.onednn_convolution() is not None) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert system.onednn_convolution() is None
    unavailable: Any = lambda: False  # noqa: E731
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", unavailable)
    assert system.onednn_convolution() is None
