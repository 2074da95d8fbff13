"""Room in memory, else in a file that vanishes, else none."""

import os
from pathlib import Path

import pytest
import torch

from flowers_torch.data.loading import image_cache as kept
from flowers_torch.data.loading.image_cache import allocate, make_image_cache

SHAPE = (3, 5)  # of float32: 60 bytes


def test_what_fits_into_memory_touches_no_disk(tmp_path: Path) -> None:
    store = allocate(SHAPE, torch.float32, 60, tmp_path / "none")
    assert store is not None and store.shape == SHAPE and not (tmp_path / "none").exists()


def test_beyond_memory_it_is_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[str] = []
    real = torch.from_file

    def seen(name: str, **options: object) -> torch.Tensor:
        files.append(name)
        assert Path(name).stat().st_size == 60  # blocks are there before anything is written to them
        return real(name, **options)

    monkeypatch.setattr(torch, "from_file", seen)
    store = allocate(SHAPE, torch.float32, 59, tmp_path)
    assert store is not None and store.shape == SHAPE
    store.fill_(7)
    assert len(files) == 1 and not list(tmp_path.iterdir()) and bool((store == 7).all())


@pytest.mark.parametrize("lack", ["share", "folder", "blocks"])
def test_without_room_there_is_none(lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    if lack == "share":
        monkeypatch.setattr(kept, "DISK_SHARE", 0.0)
    elif lack == "folder":
        folder.write_text("a file")
    else:
        monkeypatch.setattr(os, "posix_fallocate", full)
    assert allocate(SHAPE, torch.float32, 0, folder) is None
    assert make_image_cache(2, 4, 0, folder, shared=False) is None
    assert lack == "folder" or not list(folder.iterdir())
