"""Training batches are the same from any worker, after any interruption, and on any device."""

import functools

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flowers_torch.data.augment import per_batch as batch_augment
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import eval_transform, train_transform
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, TrainingBatches, batch_augmentation
from flowers_torch.data.loading.loaders import TransformedImages, make_loader
from flowers_torch.data.loading.resize import resize_transform
from flowers_torch.data.preprocessing import Preprocessing

SIZE = 24
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
INPUTS = Preprocessing(size=SIZE)

RANDOM = [name for name in BATCH_AUGMENTATIONS if name not in ("none", "mirror")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(13):
        Image.effect_noise((48 + 4 * i, 40), 80 + i).convert("RGB").save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(13)]


def batches(files, augmentation="crop", workers=0, epoch=2, skip=0, seed=5, mixup=0.0):
    by_batch = augmentation in BATCH_AUGMENTATIONS
    per_image = functools.partial(train_transform, size=SIZE, mean=MEAN, std=STD)
    transform = resize_transform(augmentation, INPUTS) if by_batch else per_image(augmentation)
    dataset = TransformedImages(files, [i % 3 for i in range(len(files))], transform, seed)
    loader, order = make_loader(dataset, 4, shuffle=True, workers=workers)
    order.epoch, order.skip = epoch, skip
    augment = batch_augmentation(augmentation, SIZE) if by_batch else None
    return list(TrainingBatches(loader, order, seed, 3, "cpu", augment, MEAN, STD, mixup))


def equal(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("augmentation", [*RANDOM, "rand"])
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(files, augmentation, mixup):
    whole, rest = (batches(files, augmentation, skip=skip, mixup=mixup) for skip in (0, 2))
    assert len(whole) == 3 and equal(whole[2:], rest)
    for inputs, targets, positions in whole:
        assert inputs.shape == (len(positions), 3, SIZE, SIZE) and inputs.isfinite().all()
        assert targets.shape == ((len(positions), 3) if mixup else (len(positions),))
    for options in ({"epoch": 3}, {"seed": 6}):
        assert not equal(whole, batches(files, augmentation, **options, mixup=mixup))


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"], indirect=True)
def test_workers_change_nothing(files, workers, start_method):
    assert equal(batches(files, mixup=0.4), batches(files, workers=workers, mixup=0.4))


def test_the_number_augmented_at_a_time_changes_nothing(files, monkeypatch):
    whole = batches(files)
    monkeypatch.setattr("flowers_torch.data.loading.batches.CPU_IMAGES", 3)
    for (ours, *_), (theirs, *_) in zip(whole, batches(files), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("augmentation", RANDOM)
def test_an_image_is_augmented_the_same_in_any_batch(augmentation):
    resized = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    aspects = torch.tensor([1.0, 1.5, 0.7, 4.0, 1.0, 0.25])
    augment = batch_augmentation(augmentation, 32)
    together = augment(resized, SampleGenerator(1, 2, torch.arange(6)), aspects)
    assert together.shape == (6, 3, 32, 32) and 0 <= together.min() and together.max() <= 1
    alone = augment(resized[4:5], SampleGenerator(1, 2, torch.tensor([4])), aspects[4:5])
    torch.testing.assert_close(alone[0], together[4], atol=1e-5, rtol=0)
    others = augment(resized, SampleGenerator(1, 3, torch.arange(6)), aspects)
    # No crop of a strip is large enough for these ratios. It is always its middle, mirrored or not.
    assert sum(torch.allclose(a, b, atol=1e-2) for a, b in zip(together, others, strict=True)) <= 3


def test_without_randomness_both_give_the_same_input(files):
    """A resized image of the input's size equals the input of prediction."""
    photo = Image.open(files[0]).convert("RGB")
    whole = eval_transform(SIZE, MEAN, STD, stretch=True)(photo)
    image = resize_transform("keras", INPUTS)(photo)
    ours = batch_augment.standardize(image[None].float() / 255, MEAN, STD)[0]
    torch.testing.assert_close(ours, whole, atol=1.01 / 255 / min(STD), rtol=0)  # one level, by rounding


def test_mixup_blends_images_and_targets_by_the_same_weights(files):
    for epoch in range(3):
        mixed, plain = (batches(files, "light", epoch=epoch, mixup=mixup) for mixup in (1.0, 0.0))
        for (inputs, targets, _), (originals, labels, _) in zip(mixed, plain, strict=True):
            torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
            one_hot = F.one_hot(labels, 3).float()
            different = labels != labels.flip(0)
            if not different.any():
                continue
            fraction = float(targets[different][0] @ one_hot[different][0])
            torch.testing.assert_close(targets, fraction * one_hot + (1 - fraction) * one_hot.flip(0))
            blend = fraction * originals + (1 - fraction) * originals.flip(0)
            torch.testing.assert_close(inputs, blend, atol=1e-5, rtol=1e-5)


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="light, crop, keras"):
        batch_augmentation("rand", SIZE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("augmentation", RANDOM)
def test_cuda_agrees_with_the_cpu(augmentation):
    resized = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    augment = batch_augmentation(augmentation, 32)
    cpu = augment(resized, SampleGenerator(1, 2, torch.arange(6)), torch.ones(6))
    cuda = augment(resized.cuda(), SampleGenerator(1, 2, torch.arange(6).cuda()), torch.ones(6).cuda())
    assert ((cpu - cuda.cpu()).abs() < 1 / 255).float().mean() > 0.99
