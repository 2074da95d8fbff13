"""The choice of a run whether photos are mirrored: by its option, the names of its classes, or a measurement."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowers_torch.config import Config
from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.mirrored_names import mirrored_classes
from flowers_torch.data.quality.filter import FilteredDataset
from flowers_torch.data.splits.assign import Splits, group_units
from flowers_torch.errors import plural, printable
from flowers_torch.evaluation.mirroring import (
    GRADIENTS,
    MirrorTest,
    compare_mirrored,
    gradient_features,
    side_by_side,
)
from flowers_torch.log import log
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.runs.feature_cache import FeatureCache

MAX_IMAGES = 400  # of the training and validation images that are tried, the classes in turn


def choose_mirror(
    config: Config, filtered: FilteredDataset, splits: Splits, cache: FeatureCache, model: nn.Module, used: bool
) -> bool:
    """Whether a mirrored photo shows the same class; logs the reason of a choice.

    Args:
        cache: Features in front of the head, which mean something if the network has pretrained weights.
        model: Its parameters and modes are set again by each stage.
        used: Whether anything mirrors images; without it nothing is measured, and mirrors are allowed.
    """
    if config.mirror != "auto":
        return config.mirror == "yes"
    dataset = filtered.dataset
    if named := mirrored_classes(dataset.classes):
        log.info(f"mirror   no: left and right are different classes ({_both(named)}); --mirror yes overrides this")
        return False
    if not used:
        return True
    found, kind = measure_mirror(filtered, splits, cache, model)
    log.info(f"mirror   {_describe(found, dataset.classes, kind)}")
    return not found.exchanges_classes


def mirrors_in_training(config: Config) -> bool:
    """Whether the stages of a run mirror images, so that the run has chosen whether they may."""
    return any(stage.augment != "none" for stage in config.stages)


def measure_mirror(
    filtered: FilteredDataset, splits: Splits, cache: FeatureCache, model: nn.Module
) -> tuple[MirrorTest, str]:
    """Tests on training and validation images whether a mirror turns one class into another, and by what."""
    dataset, members = filtered.dataset, {*splits["train"], *splits["val"]}
    chosen = [index for index in sample_by_class(dataset, len(dataset)) if index in members][:MAX_IMAGES]
    units = group_units(dataset, filtered.duplicates)
    features, kind = _features(cache, model, chosen)
    labels, groups = torch.tensor([dataset.labels[index] for index in chosen]), [units[index] for index in chosen]
    return compare_mirrored(features[: len(chosen)], features[len(chosen) :], labels, groups), kind


def _gradients(images: Tensor) -> Tensor:
    """Gradient features of images and, beside them, of their mirror images."""
    return torch.cat([gradient_features(images), gradient_features(images.flip(3))], 1)


def _features(cache: FeatureCache, model: nn.Module, indices: Sequence[int]) -> tuple[Tensor, str]:
    """Features (2 N, D) of images, then of their mirror images, and what they are."""
    sides = cache.of_pixels("gradients", 2 * GRADIENTS, _gradients, indices)
    gradients = torch.cat(sides.split(GRADIENTS, 1))
    if cache.info.weights != "none":
        apply_rules(model, rules_for(model, "head"))
        set_train_mode(model)
        split = cache.split(model)
        features = cache.features(split, indices, "mirror", views=2) if split else None
        if features is not None:
            return side_by_side(features, gradients), "features"
    return gradients, "gradients"


def _describe(found: MirrorTest, classes: Sequence[str], kind: str) -> str:
    recognized = f"{found.recognized} of {plural(found.images, 'photo')} recognized by their {kind}"
    if found.exchanges_classes:
        pair = _both([classes[label] for label in found.pair])
        what = (
            f"mirrored, {found.exchanged} of {plural(found.of_pair, 'photo')} of {pair} recognized as the other class"
        )
        return f"no: {what}; --mirror yes overrides this"
    if not found.is_conclusive:
        return f"yes: only {recognized}, too few to test it; --mirror no if a mirror turns one class into another"
    return f"yes: {recognized}, {found.changed} of them as another class when mirrored"


def _both(names: Sequence[str]) -> str:
    return " and ".join(printable(name, 60) for name in names)
