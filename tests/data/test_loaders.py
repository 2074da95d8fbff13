"""Batches that are a function of (seed, epoch, photo)."""

from pathlib import Path

import pytest
import torch

from flowers_torch.data.augment import train_transform
from flowers_torch.data.loaders import CountedBatches, PhotoDataset, choose_workers, counted_seed, make_loader
from flowers_torch.errors import DataError


def dataset(folder: Path, policy: str = "crop") -> PhotoDataset:
    paths = sorted(folder.rglob("*.png"))
    labels = [["blue", "green", "red"].index(path.parent.name) for path in paths]
    transform = train_transform(policy, 16, (0.5,) * 3, (0.5,) * 3)
    return PhotoDataset(paths, labels, transform, seed=3)


def pictures(folder: Path, workers: int, epoch: int, skip: int = 0) -> torch.Tensor:
    loader, order = make_loader(dataset(folder), 8, shuffle=True, workers=workers)
    order.epoch, order.skip = epoch, skip
    return torch.cat([images for images, _, _ in loader])


def test_the_same_pictures_for_any_number_of_workers_and_after_a_resume(photo_folder: Path) -> None:
    whole = pictures(photo_folder, workers=0, epoch=1)
    assert torch.equal(whole, pictures(photo_folder, workers=2, epoch=1))
    assert torch.equal(whole[24:], pictures(photo_folder, workers=0, epoch=1, skip=3))
    assert not torch.equal(whole, pictures(photo_folder, workers=0, epoch=2))


def test_loading_does_not_disturb_the_process_s_own_random_stream(photo_folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset(photo_folder)[0, 0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("count", "batch", "sizes"), [(60, 8, [8] * 7 + [4]), (17, 8, [8, 9]), (1, 8, [1])])
def test_the_last_batch_is_kept_and_never_a_single_photo(count: int, batch: int, sizes: list[int]) -> None:
    order = CountedBatches(count, batch, seed=0, shuffle=True)
    batches = list(order)
    assert [len(keys) for keys in batches] == sizes and len(order) == len(sizes)
    assert sorted(position for keys in batches for _, position in keys) == list(range(count))


def test_evaluation_keeps_order_and_single_photos() -> None:
    batches = list(CountedBatches(17, 8, seed=0, shuffle=False))
    assert [position for keys in batches for _, position in keys] == list(range(17))
    assert len(batches[-1]) == 1


def test_counted_seeds_differ() -> None:
    seeds = {counted_seed(s, e, i) for s in range(10) for e in range(10) for i in range(-1, 50)}
    assert len(seeds) == 10 * 10 * 51 and max(seeds) < 2**63


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photo_is_named_also_from_a_worker(
    photo_folder: Path, tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    photos = dataset(photo_folder)
    photos.paths[5] = broken
    loader, _ = make_loader(photos, 8, shuffle=False, workers=workers)
    with pytest.raises(DataError, match=r"broken\.png"):
        list(loader)


def test_workers_are_chosen_for_the_machine() -> None:
    assert choose_workers(3, on_cpu=True) == 3
    assert choose_workers(-1, on_cpu=True) == 0
    assert choose_workers(-1, on_cpu=False) >= 1
