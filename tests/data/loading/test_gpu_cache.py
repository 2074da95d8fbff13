"""Images that stay on the device give the same batches, bit for bit, as a loader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from waiting import no_waiting

from flowers_torch.data.loading import batches as batches_module
from flowers_torch.data.loading import gpu_cache
from flowers_torch.data.loading.batches import TrainingBatches, batch_augmentation
from flowers_torch.data.loading.gpu_cache import CachedFeatureBatches, GPUImages, cache_bytes_on, copied, move
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import TransformedImages, make_loader
from flowers_torch.data.loading.resize import resize_transform, resized_side
from flowers_torch.data.preprocessing import Preprocessing

SIZE = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(13):
        Image.effect_noise((48 + 4 * i, 40), 80 + i).convert("RGB").save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(13)]


def training(files: list[Path], device: str = "cpu", workers: int = 0, **options: Any) -> TrainingBatches:
    """Batches of eleven images, in a cache with room for two more in front of them."""
    labels, transform = [i % 3 for i in range(11)], resize_transform("crop", Preprocessing(size=SIZE))
    dataset = TransformedImages(files[:11], labels, transform, 5, random=False)
    cache = ImageCache(len(files), 1 << 30, files[0].parent, shared=workers > 0)
    cached = cache.images(resized_side("crop", SIZE), as_predicted=False)
    assert cached is not None
    dataset.cache = cached.subset(range(2, 13))
    loader, order = make_loader(dataset, 4, True, workers, pin_memory=device != "cpu")
    augment, channels = batch_augmentation("crop", SIZE), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    return TrainingBatches(loader, order, 5, 3, device, augment, *channels, mixup=0.4, **options)


def epochs(made: TrainingBatches, skip: int = 0) -> list[torch.Tensor]:
    values: list[torch.Tensor] = []
    for made.order.epoch in range(3):
        made.order.skip = skip if made.order.epoch == 1 else 0
        values += [value.cpu() for batch in made for value in batch]
    return values


def test_batches_indexed_on_the_device_equal_those_of_the_loader(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second pass on no file is read. An interrupted pass continues in its middle."""
    through_loader = epochs(training(files), skip=1)
    monkeypatch.setattr(batches_module, "cache_bytes_on", lambda device: 1 << 30)
    messages: list[str] = []
    made = training(files, say=messages.append)
    list(made)
    assert made.on_gpu is None and not messages
    monkeypatch.setattr(TransformedImages, "__getitem__", None)
    for ours, theirs in zip(epochs(made, skip=1), through_loader, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert made.on_gpu is not None
    assert messages == ["photos   11 stay on cpu: 0 MiB of 1,024 MiB allowed, half of the free GPU memory"]


@pytest.mark.parametrize("reason", ["too large", "out of memory"])
def test_what_does_not_fit_is_copied_batch_by_batch(
    reason: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    messages: list[str] = []
    made = training(files, say=messages.append)
    expected = epochs(made)
    monkeypatch.setattr(batches_module, "cache_bytes_on", lambda device: 1 if reason == "too large" else 1 << 30)
    monkeypatch.setattr(batches_module, "GPUImages", no_memory)
    assert all(map(torch.equal, epochs(made), expected)) and made.on_gpu is None
    assert len(messages) == 1 and "11 are copied to cpu batch by batch: 0 MiB of" in messages[0]


def test_a_cpu_has_no_second_copy(files: list[Path]) -> None:
    assert cache_bytes_on("cpu") == 0
    made = training(files)
    epochs(made)
    assert made.on_gpu is None
    values = torch.arange(3)
    assert move(values, "cpu") is values


def test_cached_features_stay_on_the_device_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(10, 4, 4, 2).bfloat16()
    _, order = make_loader(TransformedImages([Path()] * 5, [0] * 5, torch.as_tensor, 0), 2, shuffle=True)
    before = list(CachedFeatureBatches(values, range(5), order, []))
    monkeypatch.setattr(gpu_cache, "cache_bytes_on", lambda device: 1 << 20)
    for ours, theirs in zip(CachedFeatureBatches(values, range(5), order, []), before, strict=True):
        assert all(map(torch.equal, ours, theirs))


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("room", [0, 1 << 30])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_equal_those_on_a_cpu(
    workers: int, room: int, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = epochs(training(files))
    monkeypatch.setattr(batches_module, "cache_bytes_on", lambda device: room)
    made = training(files, "cuda", workers)
    for ours, theirs in zip(epochs(made), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert (made.on_gpu is not None) == bool(room)


@pytest.mark.gpu
@gpu
def test_batches_on_a_gpu_do_not_wait_for_it(files: list[Path]) -> None:
    made = training(files, "cuda")
    assert epochs(made) and made.on_gpu is not None
    loaded = list(made.loader)
    list(copied(loaded, "cuda"))
    with no_waiting():
        assert list(made) and list(copied(loaded, "cuda"))


def test_a_subset_is_uploaded_in_its_own_order(files: list[Path]) -> None:
    made = training(files)
    list(made)
    cached = made.loader.dataset.cache  # type: ignore[attr-defined]
    order = make_loader(made.loader.dataset, 11, shuffle=False)[1]  # type: ignore[arg-type]
    (item,) = GPUImages(cached, made.labels, "cpu").batches(order)
    assert item.position.tolist() == list(range(11)) and item.label.tolist() == made.labels
    for position, image in enumerate(item.image):
        found = cached.get(position)
        assert found is not None and torch.equal(found[0], image) and item.aspect[position] == found[1]
