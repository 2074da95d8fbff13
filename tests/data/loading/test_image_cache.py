"""The image cache uses memory first, then a file without a name, then nothing."""

import os
from pathlib import Path

import pytest
import torch

from flowers_torch.data.loading import image_cache
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.files import system

ONE = 5 * 3 * 4 * 4  # bytes of five images of 4 pixels


def test_what_fits_into_memory_touches_no_disk(tmp_path: Path) -> None:
    cached = ImageCache(5, ONE, tmp_path / "none", shared=False).images(4, as_predicted=False)
    assert cached is not None and cached.images.shape == (5, 3, 4, 4) and cached.file is None
    assert not (tmp_path / "none").exists() and cached.get(2) is None and not cached.is_complete()


def test_beyond_memory_it_is_a_file_without_a_name(tmp_path: Path) -> None:
    cached = ImageCache(5, ONE - 1, tmp_path, shared=False).images(4, as_predicted=False)
    assert cached is not None and not list(tmp_path.iterdir())
    pixels = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    cached.put(2, pixels, 1.5)
    found = cached.subset([4, 2]).get(1)
    assert found is not None and torch.equal(found[0], pixels) and found[1] == 1.5
    assert cached.file is not None
    status = os.fstat(cached.file.descriptor)
    assert status.st_size == ONE + 5 * 4 and status.st_blocks > 0  # blocks are allocated before anything is written
    os.lseek(cached.file.descriptor, 5 * 4, os.SEEK_SET)
    assert os.read(cached.file.descriptor, ONE) == cached.images.permute(0, 2, 3, 1).numpy().tobytes()


def test_the_file_is_closed_with_the_cache(tmp_path: Path) -> None:
    cached = ImageCache(5, 0, tmp_path, shared=False).images(4, as_predicted=False)
    assert cached is not None and cached.file is not None
    descriptor = cached.file.descriptor
    os.fstat(descriptor)
    del cached
    with pytest.raises(OSError):
        os.fstat(descriptor)


@pytest.mark.parametrize("reason", ["fraction", "folder", "blocks"])
def test_without_space_there_is_no_cache(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    if reason == "fraction":
        monkeypatch.setattr(image_cache, "DISK_FRACTION", 0.0)
    elif reason == "folder":
        folder.write_text("a file")
    else:
        monkeypatch.setattr(os, "posix_fallocate", full)
    assert ImageCache(2, 0, folder, shared=False).images(4, as_predicted=False) is None
    assert reason == "folder" or not list(folder.iterdir())


def test_all_arrays_share_one_budget(tmp_path: Path) -> None:
    """With memory for two arrays the third one is a file; with workers every array is one."""
    cache = ImageCache(5, 2 * ONE, tmp_path, shared=False)
    keys = [(4, False), (4, True), (3, False)]
    arrays = [cache.images(*key) for key in keys]
    assert [array is not None and array.file is not None for array in arrays] == [False, False, True]
    assert [cache.images(*key) for key in keys] == arrays  # allocated once
    shared = ImageCache(5, 2 * ONE, tmp_path, shared=True).images(4, False)
    assert shared is not None and shared.file is not None and not list(tmp_path.iterdir())


def test_windows_has_no_cache_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "WINDOWS", True)
    assert ImageCache(5, ONE, tmp_path, shared=True).images(4, False) is None
    assert ImageCache(5, 0, tmp_path, shared=False).images(4, False) is not None
