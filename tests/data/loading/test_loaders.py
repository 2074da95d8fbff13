"""Batches depend on seed, epoch and image, and on nothing else."""

import threading

import pytest
import torch
from PIL import Image

from flowers_torch.data.augment.per_image import train_transform
from flowers_torch.data.loading import loaders
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import (
    EpochBatchSampler,
    TransformedImages,
    choose_workers,
    derived_seed,
    make_loader,
)
from flowers_torch.data.loading.resize import resize_transform, resized_side
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import DataError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(13):
        Image.effect_noise((48, 40), 80 + i).convert("RGB").save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(13)]


def batches(files, workers=0, epoch=2, skip=0, augmentation="rand", seed=5):
    transform = train_transform(augmentation, 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    dataset = TransformedImages(files, [i % 3 for i in range(len(files))], transform, seed)
    loader, order = make_loader(dataset, 4, shuffle=True, workers=workers)
    order.epoch, order.skip = epoch, skip
    return list(loader)


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_change_nothing(files, workers):
    for ours, theirs in zip(batches(files), batches(files, workers), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def resized(files, threads, cache=None):
    dataset = TransformedImages(
        files, [0] * len(files), resize_transform("crop", Preprocessing(size=24)), seed=5, random=False
    )
    dataset.cache = cache
    loader, _ = make_loader(dataset, 4, shuffle=True, threads=threads)
    return list(loader)


def test_threads_read_in_parallel_and_change_nothing(files, monkeypatch, tmp_path):
    files, real, together = files[:12], loaders.load_image, threading.Barrier(2, timeout=10)
    expected = resized(files, 1)
    # Each image waits for another one that is being read; one thread would wait forever.
    monkeypatch.setattr(loaders, "load_image", lambda path, **_: (together.wait(), real(path))[1])
    cached = ImageCache(12, 1 << 20, tmp_path, shared=False).images(resized_side("crop", 24), False)
    for found in (resized(files, 2), resized(files, 2, cached), resized(files, 2, cached)):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.image, theirs.image) and torch.equal(ours.position, theirs.position)
            torch.testing.assert_close(ours.aspect.float(), theirs.aspect.float())
    with pytest.raises(DataError, match="cannot read"):
        resized([*files[:3], tmp_path / "gone.png"], 2)


def test_a_reading_thread_uses_one_core(files):
    """A new thread of Python would use all of them for each operation of torch."""
    dataset, cores = TransformedImages(files, [0] * len(files), None, seed=5, random=False), []
    dataset.transform = lambda image: (cores.append(torch.get_num_threads()), torch.zeros(3, 8, 8))[1]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(make_loader(dataset, 4, shuffle=False, threads=2)[0])
    finally:
        torch.set_num_threads(before)
    assert set(cores) == {1}


@pytest.mark.parametrize("augmentation", ["rand", "trivial"])
def test_the_batches_of_a_resumed_epoch_are_the_rest(files, augmentation):
    whole, rest = batches(files, augmentation=augmentation), batches(files, augmentation=augmentation, skip=2)
    assert len(rest) == len(whole) - 2
    for ours, theirs in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_epochs_and_seeds_differ(files):
    def order(**options):
        return torch.cat([batch.position for batch in batches(files, **options)]).tolist()

    assert sorted(order()) == list(range(13))
    assert order() == order() and order() != order(epoch=3) and order() != order(seed=6)
    assert derived_seed(1, 2) != derived_seed(2, 1) and 0 <= derived_seed(1, 2) < 2**63


def test_the_global_random_stream_is_not_disturbed(files):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(files)
    assert torch.equal(torch.rand(3), expected)


def test_the_random_streams_of_gpus_are_not_disturbed(files, monkeypatch):
    """`torch.manual_seed` seeds them too, and dropout on a GPU would repeat itself after each image."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it seeds the GPUs"))
    batches(files)


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (3, [3])])
def test_no_image_is_dropped_and_none_is_alone_in_a_batch(count, sizes):
    order = EpochBatchSampler(count, 4, seed=0, shuffle=True)
    assert [len(batch) for batch in order] == sizes and len(order) == len(sizes)
    assert sorted(position for batch in order for _, position in batch) == list(range(count))


def test_a_bad_image_is_named_from_a_worker_too(files, tmp_path, start_method):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(files[0].read_bytes()[:200])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"bad\.jpg is not a usable image.*fix: "):
            batches([*files, bad], workers)


def test_workers_fill_one_cache(files, tmp_path, start_method):
    images = ImageCache(13, 1 << 20, tmp_path, shared=True).images(resized_side("crop", 24), False)
    transform = resize_transform("crop", Preprocessing(size=24))
    dataset = TransformedImages(files, [0] * len(files), transform, seed=5, random=False)
    dataset.cache = images
    loader, _ = make_loader(dataset, 4, shuffle=True, workers=2)
    first, plain = list(loader), resized(files, 1)
    again = list(loader)  # in the same order, now without decoding
    assert all(images.get(position) is not None for position in range(13))
    for ours, cached, theirs in zip(first, again, plain, strict=True):
        assert torch.equal(ours.image, theirs.image) and torch.equal(cached.image, theirs.image)


def test_workers_are_chosen_for_the_machine(monkeypatch):
    assert choose_workers(3, on_cpu=True) == 3
    assert choose_workers(-1, on_cpu=True) == 0
    alone = choose_workers(-1, on_cpu=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's number of processes on this machine
    assert 1 <= choose_workers(-1, on_cpu=False) == max(1, alone // 2)
