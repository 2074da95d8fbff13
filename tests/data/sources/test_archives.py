"""Safe unpacking: nothing outside of the folder, no bombs, all files or none."""

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from flowers_torch.data.sources import archives
from flowers_torch.data.sources.archives import archive_name, extract_archive, extract_to_cache, staged_folder
from flowers_torch.data.tar_members import HeaderReader
from flowers_torch.errors import DataError, ResourceError
from flowers_torch.files.system import ignores_case


def tar_bytes(*members, mode="w:gz") -> bytes:
    """Members are (name, bytes) or TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def zip_bytes(*members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in members:
            content.writestr(name, data)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = (("set/a/1.jpg", b"one"), ("set/b/2.jpg", random.Random(0).randbytes(100_000)))


def refuse(tmp_path: Path, content: bytes, match: str, **limits: int) -> None:
    """Asserts that the archive is refused and nothing else is left."""
    archive = tmp_path / "in" / "set.tgz"
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(content)
    with pytest.raises(DataError, match=match):
        extract_archive(archive, tmp_path / "in" / "out", **limits)
    assert [path.name for path in archive.parent.iterdir()] == ["set.tgz"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_unpacks_whatever_the_suffix(tmp_path, mode):
    archive = tmp_path / "set.bin"
    archive.write_bytes(
        zip_bytes(*GOOD) if mode == "zip" else tar_bytes(special(".", tarfile.DIRTYPE), *GOOD, mode=mode)
    )
    folder = extract_archive(archive, tmp_path / "out")
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jpg")} == dict(GOOD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set.bin"]
    (folder / "mark").write_text("")
    extract_archive(archive, folder)  # exists: not unpacked again
    assert (folder / "mark").exists()


OUTSIDE = (
    *(
        "..",
        "../evil",
        "a/../../evil",
        "..\\evil",
        "a\\..\\..\\e",
        "./../evil",
        "a/./.././../evil",
        "a//../..//e",
    ),
    *("/tmp/evil", "//tmp/evil", "///tmp/evil", "\\tmp\\evil", "/./tmp/evil", "/", "//"),
    *("\\\\host\\share\\evil", "//host/share/evil", "\\\\?\\C:\\evil", "\\\\.\\PIPE\\evil", "\\/host/evil"),
    *("C:\\evil", "C:/evil", "C:evil", "c:", "a/C:evil", "a\\d:\\evil"),
    *("CON", "a/nul", "set/NUL.txt", "aux.jpg", "a/COM1", "lpt9.png", "prn /x", "con.tar.gz"),
)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_paths_that_lead_outside(tmp_path, name, pack):
    refuse(tmp_path, pack(*GOOD, (name, b"evil")), "unsafe path")


def test_names_that_only_look_unsafe(tmp_path):
    names = ("a..b/c...jpg", "constance/1.jpg", "a/12:30.jpg", "com/lpt.jpg", "nullarbor.jpg")
    archive = tmp_path / "set.tar"
    archive.write_bytes(tar_bytes(*((name, b"x") for name in names)))
    folder = extract_archive(archive, tmp_path / "out")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(names)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    members = (special("set/a/link", kind, str(tmp_path)), ("set/a/link/evil", b""))
    refuse(tmp_path, tar_bytes(*GOOD, *members), "link, device")


def test_links_in_a_zip(tmp_path):
    link = zipfile.ZipInfo("set/link")
    link.external_attr = 0o120777 << 16
    refuse(tmp_path, zip_bytes(*GOOD, (link, str(tmp_path))), "link or device")


def test_bombs(tmp_path):
    zeros = ("zeros", bytes(80 * 1024**2))
    refuse(tmp_path, zip_bytes(zeros), "unpacks to more than")
    refuse(tmp_path, tar_bytes(zeros), "unpacks to more than")
    refuse(tmp_path, tar_bytes(*GOOD), "more than 1 members", max_members=1)
    refuse(tmp_path, zip_bytes(*GOOD), "unpacks to more than 1,000 bytes", max_bytes=1000)


def test_a_header_that_claims_gigabytes_of_attributes(tmp_path):
    """tarfile reads extended headers whole; the claim is refused before memory is asked for."""
    header = special("pax", tarfile.XHDTYPE)
    header.size = 7 * 1024**3
    refuse(tmp_path, gzip.compress(header.tobuf() + bytes(100_000)), "a header claims")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_truncated_archives(tmp_path, fraction, mode):
    content = zip_bytes(*GOOD) if mode == "zip" else tar_bytes(*GOOD, mode=mode)
    if mode == "w" and fraction > 0.9:  # a tar ends in kilobytes of zeros
        fraction = 0.9
    refuse(tmp_path, content[: int(len(content) * fraction)], "not a whole archive|not a tar or zip")


def test_a_tar_cut_between_two_members_is_noticed(tmp_path):
    refuse(tmp_path, tar_bytes(*GOOD, mode="w")[:1024], "end marker")
    refuse(tmp_path, gzip.compress(tar_bytes(*GOOD, mode="w")[:1024]), "end marker")


def test_flipped_bytes_are_noticed(tmp_path):
    for content in (zip_bytes(*GOOD), tar_bytes(*GOOD)):
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 4
        refuse(tmp_path, bytes(flipped), "not a whole archive")


def test_invalid_archives(tmp_path):
    refuse(tmp_path, b"<html>404</html>", "web page")
    refuse(tmp_path, b"words", "not a tar or zip")
    refuse(tmp_path, tar_bytes(), "no files")
    with pytest.raises(DataError, match="none.tgz"):
        extract_archive(tmp_path / "none.tgz", tmp_path / "out")


def test_encrypted_zip(tmp_path):
    content = bytearray(zip_bytes(("a/1.jpg", b"x")))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    refuse(tmp_path, bytes(content), "encrypted")


def test_a_member_listed_twice(tmp_path):
    refuse(tmp_path, tar_bytes(GOOD[0], GOOD[0]), "twice")


def test_a_full_disk_is_a_resource_error(tmp_path, monkeypatch):
    archive = tmp_path / "set.zip"
    archive.write_bytes(zip_bytes(*GOOD))

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.Path, "open", lambda path, mode: Full() if mode == "xb" else open(path, mode))
    with pytest.raises(ResourceError, match="No space left"):
        extract_archive(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.needs("signals")
def test_killed_while_unpacking_counts_as_nothing(tmp_path):
    """kill -9 in the middle: the folder is absent, and the next run starts clean."""
    archive = tmp_path / "set.tgz"
    archive.write_bytes(tar_bytes(*GOOD))
    code = (
        "import os, signal; from pathlib import Path; from flowers_torch.data.sources import archives\n"
        "write = archives._Target.write\n"
        "def die(self, name, source):\n"
        "    write(self, name, source); os.kill(os.getpid(), signal.SIGKILL)\n"
        "archives._Target.write = die\n"
        f"archives.extract_archive(Path({str(archive)!r}), Path({str(tmp_path / 'out')!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not (tmp_path / "out").exists()
    (leftover,) = tmp_path.glob(".out.*.partial")
    extract_archive(archive, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 2
    assert leftover.exists()  # may belong to another process
    old = time.time() - 2 * archives.STALE_SECONDS
    os.utime(leftover, (old, old))
    with staged_folder(tmp_path / "out2"), staged_folder(tmp_path / "out"):
        assert not leftover.exists()


def test_another_process_was_faster(tmp_path):
    with staged_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/file").write_text("theirs")
    assert (tmp_path / "out/file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_cache_folder_is_named_by_content(tmp_path):
    archive = tmp_path / "My set.tar.gz"
    archive.write_bytes(tar_bytes(*GOOD))
    first = extract_to_cache(archive, tmp_path / "cache")
    assert first.name.startswith("My set-") and extract_to_cache(archive, tmp_path / "cache") == first
    archive.write_bytes(tar_bytes(GOOD[0]))
    assert extract_to_cache(archive, tmp_path / "cache") != first
    assert archive_name(Path("x.TGZ")) == "x" and archive_name(Path(".zip")) == "archive"


def test_a_zip_of_an_unknown_version_or_without_names(tmp_path):
    content = bytearray(zip_bytes(*GOOD))
    at = content.index(b"PK\x01\x02")
    content[at + 6 : at + 8] = b"\x74\x00"
    refuse(tmp_path, bytes(content), "not a whole archive: zip file version")
    info = zipfile.ZipInfo("x")
    info.filename = ""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, b"content")
    refuse(tmp_path, buffer.getvalue(), "unsafe path")


def test_names_that_cannot_be_written_are_the_archives_fault(tmp_path):
    for name in ("a" * 300, "a/1.jpg/b"):
        refuse(tmp_path, zip_bytes(("a/1.jpg", b"x"), (name, b"y")), "a name that cannot be written here")
        refuse(tmp_path, tar_bytes(("a/1.jpg", b"x"), (name, b"y")), "a name that cannot be written here")


def test_a_negative_size_in_a_compressed_tar_reads_nothing(tmp_path):
    """tarfile would read the rest of the stream in one call."""
    header = bytearray(special("pax", tarfile.XHDTYPE).tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfc\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    refuse(tmp_path, gzip.compress(bytes(header) + bytes(1 << 20)), "a header claims -|invalid offset")


def test_a_header_that_is_read_in_pieces_is_refused(tmp_path, monkeypatch):
    """Newer releases of Python read what a header claims piece by piece, so that no piece is large."""
    if hasattr(tarfile, "_safe_read"):
        pieces = tarfile._safe_read
    else:

        def pieces(file, size):
            return b"".join(file.read(min(1 << 16, size - start)) for start in range(0, size, 1 << 16))

    header = special("pax", tarfile.XHDTYPE)
    header.size = 64 << 20
    file = HeaderReader(io.BytesIO(header.tobuf() + bytes(header.size)))
    assert file.read(512)
    with pytest.raises(tarfile.ReadError, match="a header claims 1,0"):
        pieces(file, header.size)
    refuse(tmp_path, gzip.compress(header.tobuf() + bytes(header.size)), "a header claims")


def test_many_folders_are_no_large_header(tmp_path):
    """Nothing but headers: 2,100 of them, of 512 bytes each."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for number in range(2100):
            folder = tarfile.TarInfo(f"a/{number}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        photo = tarfile.TarInfo("a/1.png")
        photo.size = 1
        archive.addfile(photo, io.BytesIO(b"x"))
    (tmp_path / "set.tgz").write_bytes(content.getvalue())
    assert (extract_archive(tmp_path / "set.tgz", tmp_path / "out") / "a/1.png").read_bytes() == b"x"


@pytest.mark.needs("linux")
def test_a_read_error_is_not_a_full_disk(tmp_path):
    archive = tmp_path / "set.tar"
    archive.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"cannot read .*set\.tar: Input/output error"):
        extract_to_cache(archive, tmp_path / "cache")


@pytest.mark.needs("modes")
def test_unpacked_folders_have_the_rights_that_the_user_s_mask_says(tmp_path):
    (tmp_path / "set.tgz").write_bytes(tar_bytes(*GOOD))
    for mask, rights in ((0o077, 0o700), (0o022, 0o755)):
        before = os.umask(mask)
        try:
            folder = extract_archive(tmp_path / "set.tgz", tmp_path / f"out{mask}")
        finally:
            os.umask(before)
        assert folder.stat().st_mode & 0o777 == rights


def test_folders_that_differ_in_case_are_refused_where_they_would_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two classes become one on macOS and Windows."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
        for name in ("set/Rose/1.png", "set/rose/2.png"):
            content.writestr(name, b"x")
    if not ignores_case(tmp_path):
        folder = extract_archive(tmp_path / "a.zip", tmp_path / "kept apart")
        assert sorted(path.name for path in (folder / "set").iterdir()) == ["Rose", "rose"]
    monkeypatch.setattr(archives, "ignores_case", lambda folder: True)
    with pytest.raises(DataError, match=r"one on this disk: set/Rose, set/rose; fix: rename"):
        extract_archive(tmp_path / "a.zip", tmp_path / "one")
    assert not (tmp_path / "one").exists()
