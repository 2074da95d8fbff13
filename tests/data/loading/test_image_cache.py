"""The image cache uses memory first, then a file without a name, then nothing."""

import os
from pathlib import Path

import pytest
import torch

from flowers_torch.data.loading import image_cache
from flowers_torch.data.loading.image_cache import ImageCache, allocate

SHAPE = (3, 5)  # of float32: 60 bytes


def test_what_fits_into_memory_touches_no_disk(tmp_path: Path) -> None:
    values = allocate(SHAPE, torch.float32, 60, tmp_path / "none")
    assert values is not None and values.shape == SHAPE and not (tmp_path / "none").exists()


def test_beyond_memory_it_is_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[str] = []
    real = torch.from_file

    def from_file(name: str, **options: object) -> torch.Tensor:
        files.append(name)
        assert Path(name).stat().st_size == 60  # blocks are allocated before anything is written to them
        return real(name, **options)

    monkeypatch.setattr(torch, "from_file", from_file)
    values = allocate(SHAPE, torch.float32, 59, tmp_path)
    assert values is not None and values.shape == SHAPE
    values.fill_(7)
    assert len(files) == 1 and not list(tmp_path.iterdir()) and bool((values == 7).all())


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
    assert allocate(SHAPE, torch.float32, 0, folder) is None
    assert ImageCache(2, 0, folder, shared=False).images(4, as_predicted=False) is None
    assert reason == "folder" or not list(folder.iterdir())


def test_all_arrays_share_one_budget(tmp_path: Path) -> None:
    """With memory for two arrays the third one is a file; with workers every array is one."""
    one = 5 * (3 * 4 * 4 + 4)  # five images of 4 pixels, and their aspect ratios
    cache = ImageCache(5, 2 * one, tmp_path, shared=False)
    keys = [(4, False), (4, True), (3, False)]
    arrays = [cache.images(*key) for key in keys]
    assert [array is not None and array.images.untyped_storage().filename for array in arrays[:2]] == [None] * 2
    assert arrays[2] is not None and arrays[2].images.untyped_storage().filename
    assert [cache.images(*key) for key in keys] == arrays  # allocated once
    shared = ImageCache(5, 2 * one, tmp_path, shared=True).images(4, False)
    assert shared is not None and shared.images.untyped_storage().filename and not list(tmp_path.iterdir())
