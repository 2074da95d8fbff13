"""Batches of a run's images, and the memory that caches them."""

from collections.abc import Callable

import torch

from flowers_torch.config import Config
from flowers_torch.runs.experiment import Experiment

MakeConfig = Callable[..., Config]


def test_mirrored_views_are_the_image_and_its_mirror_image(make_config: MakeConfig) -> None:
    experiment, _ = Experiment.new(make_config())
    train, loaders = experiment.splits["train"], experiment.loaders
    batches, views = loaders.in_order(train, "mirror"), []
    for epoch in range(3):
        batches.order.epoch = epoch
        views.append(torch.cat([images for images, _, _ in batches]))
    plain = torch.cat([images for images, _, _ in loaders.in_order(train)])
    assert torch.allclose(views[0], plain, atol=1e-6)
    assert torch.equal(views[1], views[0].flip(3)) and torch.equal(views[2], views[0])


def test_every_split_and_stage_shares_the_decoded_images(make_config: MakeConfig) -> None:
    experiment, _ = Experiment.new(make_config())
    loaders, splits = experiment.loaders, experiment.splits
    for augmentation in ("none", "mirror", "light", "crop"):
        list(loaders.in_order(splits["train"], augmentation))
    list(loaders.training(splits["val"], "light"))
    assert loaders.unsharded().cache is loaders.cache
    assert sorted(loaders.cache.arrays) == [(False, 39), (False, 45), (True, 32)]
    assert all(array and array.file is None for array in loaders.cache.arrays.values())


def test_without_memory_the_images_are_cached_in_files(make_config: MakeConfig) -> None:
    expected, found = (
        list(experiment.loaders.training(experiment.splits["train"], "light"))
        for experiment in (Experiment.new(make_config(cache_gib=gib))[0] for gib in (2.0, 0.0))
    )
    assert all(
        torch.equal(*pair) for batches in zip(expected, found, strict=True) for pair in zip(*batches, strict=True)
    )
    experiment, _ = Experiment.new(make_config(cache_gib=0.0))
    cached = experiment.loaders.in_order([0]).loader.dataset.cache  # type: ignore[attr-defined]
    assert cached is not None and cached.file is not None
