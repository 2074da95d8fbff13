"""Training batches: augmented together, the same from any worker, after any interruption, on any device."""

import pytest
import torch
from PIL import Image

from flowers_torch.data.augment import per_batch as batch_augment
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import eval_transform, train_transform
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, TrainingBatches, batch_augmentation
from flowers_torch.data.loading.loaders import TransformedImages, make_loader
from flowers_torch.data.loading.resize import resize_transform

SIZE = 24
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

BY_CHANCE = [policy for policy in BATCH_AUGMENTATIONS if policy not in ("none", "mirror")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(13):
        Image.effect_noise((48 + 4 * i, 40), 80 + i).convert("RGB").save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(13)]


def batches(files, policy="crop", workers=0, epoch=2, skip=0, seed=5, balanced=False, **mixing):
    by_batch = policy in BATCH_AUGMENTATIONS
    transform = resize_transform(policy, SIZE) if by_batch else train_transform(policy, SIZE, MEAN, STD)
    dataset = TransformedImages(files, [i % 3 for i in range(len(files))], transform, seed)
    loader, order = make_loader(dataset, 4, shuffle=True, workers=workers, balanced=balanced)
    order.epoch, order.skip = epoch, skip
    augment = batch_augmentation(policy, SIZE) if by_batch else None
    return list(TrainingBatches(loader, order, seed, 3, "cpu", augment, MEAN, STD, **mixing))


def equal(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("policy", [*BY_CHANCE, "rand"])
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(files, policy, mixing):
    whole, rest = batches(files, policy, **mixing), batches(files, policy, skip=2, **mixing)
    assert len(whole) == 3 and equal(whole[2:], rest)
    for inputs, targets, positions in whole:
        assert inputs.shape == (len(positions), 3, SIZE, SIZE) and inputs.isfinite().all()
        assert targets.shape == ((len(positions), 3) if mixing else (len(positions),))
    for options in ({"epoch": 3}, {"seed": 6}):
        assert not equal(whole, batches(files, policy, **options, **mixing))


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_change_nothing(files, workers):
    mixing = {"mixup": 0.4, "cutmix": 1.0}
    assert equal(batches(files, **mixing), batches(files, workers=workers, **mixing))


def test_how_many_are_augmented_at_a_time_changes_nothing(files, monkeypatch):
    whole = batches(files)
    monkeypatch.setattr("flowers_torch.data.loading.batches.CPU_PHOTOS", 3)
    for (ours, *_), (theirs, *_) in zip(whole, batches(files), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_repeats_of_the_balanced_sampler_are_different_views(files):
    ours = batches(files, balanced=True)
    positions = torch.cat([p for _, _, p in ours]).tolist()
    inputs = torch.cat([i for i, _, _ in ours])
    twice = next(p for p in positions if positions.count(p) > 1)
    first, second = [i for i, p in enumerate(positions) if p == twice][:2]
    assert not torch.allclose(inputs[first], inputs[second], atol=0.05)


@pytest.mark.parametrize("policy", BY_CHANCE)
def test_a_photo_gets_the_same_variant_in_any_batch(policy):
    canvases = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    aspects = torch.tensor([1.0, 1.5, 0.7, 4.0, 1.0, 0.25])
    augment = batch_augmentation(policy, 32)
    together = augment(canvases, SampleGenerator(1, 2, torch.arange(6)), aspects)
    assert together.shape == (6, 3, 32, 32) and 0 <= together.min() and together.max() <= 1
    alone = augment(canvases[4:5], SampleGenerator(1, 2, torch.tensor([4])), aspects[4:5])
    torch.testing.assert_close(alone[0], together[4], atol=1e-5, rtol=0)
    others = augment(canvases, SampleGenerator(1, 3, torch.arange(6)), aspects)
    # A strip has no part of these ratios that is large enough: always its middle, mirrored or not.
    assert sum(torch.allclose(a, b, atol=1e-2) for a, b in zip(together, others, strict=True)) <= 3


def test_without_chance_both_layers_give_the_same_input(files):
    """A canvas of the input's own size, not augmented, is what prediction makes of the photo."""
    photo = Image.open(files[0]).convert("RGB")
    whole = eval_transform(SIZE, MEAN, STD, stretch=True)(photo)
    canvas = resize_transform("keras", SIZE)(photo)
    ours = batch_augment.standardize(canvas[None].float() / 255, MEAN, STD)[0]
    torch.testing.assert_close(ours, whole, atol=1.01 / 255 / min(STD), rtol=0)  # a level, by rounding


def test_mixed_targets_are_shares_of_the_classes(files):
    kinds = set()
    for epoch in range(6):
        mixed = batches(files, "light", epoch=epoch, mixup=1.0, cutmix=1.0)
        plain = batches(files, "light", epoch=epoch)
        for (inputs, targets, _), (originals, labels, _) in zip(mixed, plain, strict=True):
            torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
            own = targets.gather(1, labels[:, None])
            assert ((own < 1) | (labels == labels.flip(0))[:, None]).all()
            # Pasted pixels are another photo's own ones, blended ones are nobody's.
            foreign = (inputs != originals).any(1)
            pasted = (inputs == originals.flip(0)).all(1)
            kinds.add("cutmix" if bool((pasted | ~foreign).all()) else "mixup")
    assert kinds == {"mixup", "cutmix"}


@pytest.mark.parametrize(("mixing", "wanted"), [({"mixup": 1.0}, "mixup"), ({"cutmix": 1.0}, "cutmix")])
def test_one_kind_of_mixing_alone(files, mixing, wanted, monkeypatch):
    other = "cutmix" if wanted == "mixup" else "mixup"
    monkeypatch.setattr(batch_augment, other, None)
    assert len(batches(files, **mixing)) == 3


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="light, crop, alexnet, keras"):
        batch_augmentation("rand", SIZE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("policy", BY_CHANCE)
def test_cuda_agrees_with_the_cpu(policy):
    canvases = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    augment = batch_augmentation(policy, 32)
    cpu = augment(canvases, SampleGenerator(1, 2, torch.arange(6)), torch.ones(6))
    cuda = augment(canvases.cuda(), SampleGenerator(1, 2, torch.arange(6).cuda()), torch.ones(6).cuda())
    assert ((cpu - cuda.cpu()).abs() < 1 / 255).float().mean() > 0.99
