"""From a configuration to everything that a run works on: device, photos, split, network."""

import contextlib
import dataclasses
import math
import platform
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch import __version__
from flowers_torch.config import Config, Stage, split_fractions, with_absolute_paths
from flowers_torch.data.quality.filter import FilteredDataset, filter_images
from flowers_torch.data.augment.per_image import train_transform
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, TrainingBatches, batch_augmentation
from flowers_torch.data.loading.resize import resized_images, resized_side
from flowers_torch.data.sources.flowers17 import by_file_name, is_from_flowers17, official_split, whole_set
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.loading.image_cache import ImageCache, make_image_cache
from flowers_torch.data.loading.loaders import TransformedImages, loader_settings, make_loader
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.splits.assign import Splits, describe_splits, exact_split, is_imbalanced, split_dataset
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.files.cache import cache_folder
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.split_model import SplitModel
from flowers_torch.models.freeze import Rules, apply_rules, rules_for, set_train_mode
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.models.factory import check_size
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed
from flowers_torch.training.step import class_weights
from flowers_torch.log import log
from flowers_torch.training.runtime import Runtime, choose_runtime, keep_freed_memory, autotune_precision

SEED_COUNTS = (800, 280, 280)  # of Flowers-17 in the Keras seed, with the 40 photos it left over


@dataclasses.dataclass
class Run:
    """Everything that a run works on."""

    config: Config
    runtime: Runtime
    photos: ImageDataset
    split: Splits
    info: ModelInfo
    model: nn.Module
    folder: Path = Path()
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # photos left out: path to reason
    duplicates: list[list[int]] = dataclasses.field(default_factory=list)  # photos that show the same picture
    # Photos as bytes for all parts, by how they lie on their canvas (see `part_batches`).
    kept: dict[tuple[bool, int], ImageCache | None] = dataclasses.field(default_factory=dict)
    pooled: SplitModel | None = None  # where only the head has been trained: features may be known from disk
    best_answers: Predictions | None = None  # to the validation photos, in the best epoch of this process
    closing_seconds: float = 0.0  # that a last validation and the test will take; only where time is limited
    world: Distributed = SINGLE_PROCESS  # the processes that share it
    stores: list[weakref.ref[Tensor]] = dataclasses.field(default_factory=list)  # what fronts answered
    _fused: nn.Module | None = dataclasses.field(default=None, init=False)

    def answering(self) -> nn.Module:
        """The network in inference mode, or a view of it that answers sooner."""
        self.model.eval()
        if self._fused is None:
            self._fused = self.runtime.fused(self.model, self.info.preprocessing.size)
        return self._fused

    def budget(self) -> int:
        """Bytes of memory for photos and for what fronts answer (`cache_gib`)."""
        return int(self.config.cache_gib * 2**30)

    def room(self) -> int:
        """Bytes left of the budget."""
        held = [kept.images for kept in self.kept.values() if kept]
        held += [store for reference in self.stores if (store := reference()) is not None]
        in_memory = [tensor.nbytes for tensor in held if tensor.untyped_storage().filename is None]
        return max(0, self.budget() - sum(in_memory))


def prepare_together(config: Config, world: Distributed) -> Run:
    """`prepare` in the main process first: it fetches, decodes, times and refuses for all."""
    run = prepare(config, world) if world.is_main else None
    config = world.tell(run.config if run else config)
    if run is None and world.local_rank == 0:
        run = prepare(config, world)  # the main one of another machine
    world.wait()
    return run or prepare(config, world)


def prepare(config: Config, world: Distributed = SINGLE_PROCESS) -> Run:
    """Device, photos, split and network of a configuration; nothing is written yet."""
    log.info(f"flowers_torch {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    if config.batch_size < 2 * world.size:
        raise UsageError(
            f"--batch-size {config.batch_size} is too small for {world.size} processes",
            f"use {2 * world.size} or more",
        )
    device = world.device(config.device)
    runtime = choose_runtime(device, config.precision, config.channels_last, config.threads)
    if runtime.device.type == "cpu":
        keep_freed_memory()
    weights = config.weights or ("none" if config.data == "demo" else "imagenet")
    plan = plan_weights(config.arch, weights, config.keras_input)
    preprocessing = dataclasses.replace(
        plan.preprocessing,
        size=config.size or plan.preprocessing.size,
        stretch=config.resize == "stretch" if config.resize else plan.preprocessing.stretch,
    )
    check_size(config.arch, preprocessing.size)

    admission = open_filtered(config)
    photos = admission.photos
    for line in (*photos.notes, *admission.remarks):
        log.info(f"note     {line}")
    split = choose_split(photos, config, admission.duplicates)
    log.info(f"data     {photos.name}: {describe_splits(photos, split)}")
    if is_imbalanced(photos) and config.class_weights == config.sampler == "none":
        log.info('note     rare classes are not weighed up: class_weights and sampler could be "balanced"')

    info = ModelInfo(
        arch=config.arch,
        classes=photos.classes,
        preprocessing=preprocessing,
        head_hidden=config.head_hidden,
        dropout=config.dropout,
        head_norm=config.head_norm,
        head=config.head,
        model_options=plan.options | config.model_options,
        weights=plan.source,
        licence=plan.licence,
    )
    torch.manual_seed(config.seed)
    model = build(info)
    loaded = load_weights(model, config.arch, plan, photos.classes)
    size = sum(parameter.numel() for parameter in model.parameters())
    log.info(f"network  {config.arch}, {size:,} parameters, input {preprocessing.size} px; {loaded}")
    if plan.licence:
        log.info(f"weights  {plan.source}, licence: {plan.licence}")
    beyond_head = [stage for stage in config.stages if stage.train != "head" or stage.rules]
    stage = (beyond_head or config.stages)[-1]
    apply_rules(runtime.place(model), stage_rules(model, stage))
    set_train_mode(model, stage.batch_norm)
    step = model if world.size > 1 else runtime.fused(model, preprocessing.size)
    runtime = autotune_precision(runtime, step, preprocessing.size, bool(beyond_head))
    layout = "" if runtime.channels_last == config.channels_last else ", channels first"
    log.info(f"device   {runtime.device}, {runtime.precision}{layout} ({runtime.reason})")
    stages = ", ".join(f"{stage.name} {stage.epochs} x ({stage.train})" for stage in config.stages)
    log.info(
        f"plan     {stages}; each pass over {len(split['train'])} photos, {config.batch_size} a step"
        + _about(config, split, runtime.rate)
    )
    # What was chosen becomes part of the configuration: a resumed or repeated run must not choose anew.
    config = dataclasses.replace(
        with_absolute_paths(dataclasses.replace(config, weights=weights)),
        precision=runtime.precision,
        channels_last=runtime.channels_last,
    )
    return Run(
        config,
        runtime,
        photos,
        split,
        info,
        model,
        bad=admission.bad,
        duplicates=admission.duplicates,
        world=world,
    )


def _about(config: Config, split: Splits, rate: float) -> str:
    """How long the stages will take by the step that was timed, which stored answers make less."""
    if not rate:
        return ""
    seconds = 0.0
    for stage in config.stages:
        if views := stage.stored_views(len(split["train"])):
            seconds += (views * len(split["train"]) + len(split["val"])) / rate
        else:
            seconds += stage.epochs * (len(split["train"]) + len(split["val"])) / rate
    seconds += len(split["test"]) / rate
    span = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{math.ceil(seconds)} seconds"
    return f"; at most about {span}"


def open_filtered(config: Config) -> FilteredDataset:
    """The photos of a configuration that can be trained on."""
    return filter_images(open_dataset(config.data), config.exclude, config.groups, config.skip_bad)


@contextlib.contextmanager
def photos_of(folder: Path, config: Config) -> Iterator[None]:
    """Inside, an error about photos that are no longer where the run had them says how to give their place.

    Raises:
        DataError: the photos have moved.
    """
    try:
        yield
    except DataError as error:
        place = Path(config.data)
        there = place.parent if set("*{") & set(place.name) else place  # of tar shards a pattern
        if not place.is_absolute() or there.exists():
            raise
        what = f"the photos of {printable(folder)} are not at {printable(place)}"
        raise DataError(what, "name the place where they are now with --data") from error


def stage_rules(model: nn.Module, stage: Stage) -> Rules:
    """What trains in a stage: its own rules, or those that its `train` stands for."""
    return [(pattern, rate) for pattern, rate in stage.rules] or rules_for(model, stage.train)


def augments_batches(config: Config, policy: str) -> bool:
    """Whether a policy works on whole batches here; `mirror` always does."""
    return policy == "mirror" or (config.batch_augment and policy in BATCH_AUGMENTATIONS)


def photo_dataset(run: Run, part: str, policy: str, canvases: bool = False) -> TransformedImages:
    """Photos of a part under an augmentation policy, or as the canvases that it takes batch by batch.

    Of the parts that are predicted, a process gets its share only.
    """
    indices = _own_share(run, part)
    paths = [run.photos.root / run.photos.paths[index] for index in indices]
    labels = [run.photos.labels[index] for index in indices]
    inputs = run.info.preprocessing
    if canvases:
        how = (policy, inputs.size, inputs.interpolation, inputs.crop, inputs.stretch)
        return resized_images(paths, labels, run.config.seed, *how)
    transform = train_transform(policy, **dataclasses.asdict(inputs))
    return TransformedImages(paths, labels, transform, run.config.seed)


def _own_share(run: Run, part: str) -> Sequence[int]:
    return run.split[part] if part == "train" else run.world.share(run.split[part])


def _kept_photos(run: Run, policy: str, shared: bool) -> ImageCache | None:
    """Room for all photos as a policy wants them; what one part or stage decoded serves the next."""
    as_predicted = policy in ("none", "mirror")  # cut out as for prediction; else the whole photo
    side = resized_side(policy, run.info.preprocessing.size)
    if (as_predicted, side) not in run.kept:
        run.kept[as_predicted, side] = make_image_cache(len(run.photos), side, run.room(), cache_folder(), shared)
    return run.kept[as_predicted, side]


def predict_part(
    run: Run, part: str, model: nn.Module, batches: Iterable[Any], after_batch: Callable[[int], Any]
) -> Predictions:
    """The answers to a part in the order of the split, each photo once, from all processes."""
    count = len(run.split[part])
    own = collect(model, batches, run.runtime, after_batch)
    return Predictions(*(run.world.gather(values, count) for values in (own.logits, own.labels, own.features)))


def training_batches(run: Run, stage: Stage) -> TrainingBatches:
    """The augmented batches of a stage, shuffled."""
    return part_batches(run, "train", stage.augment, True, stage.mixup, stage.cutmix)


def part_batches(
    run: Run,
    part: str,
    policy: str = "none",
    shuffle: bool = False,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> TrainingBatches:
    """Batches of a part under an augmentation policy."""
    config, inputs = run.config, run.info.preprocessing
    by_batch = augments_batches(config, policy)
    dataset = photo_dataset(run, part, policy, canvases=by_batch)
    how = loading(run)
    if by_batch and (kept := _kept_photos(run, policy, how["workers"] > 0)):
        dataset.kept = kept.part(_own_share(run, part))
    balanced = shuffle and config.sampler == "balanced"
    loader, order = make_loader(dataset, config.batch_size, shuffle, balanced=balanced, **how)
    return TrainingBatches(
        loader,
        order,
        config.seed,
        len(run.photos.classes),
        run.runtime.device,
        batch_augmentation(policy, inputs.size, inputs.crop) if by_batch else None,
        inputs.mean,
        inputs.std,
        mixup,
        cutmix,
        log.info if shuffle else str,
    )


def loading(run: Run) -> dict[str, Any]:
    """How batches are read on this machine: keywords of `make_loader`."""
    how = loader_settings(run.config.workers, run.runtime.device)
    return how | {"shard": (run.world.rank, run.world.size)}


def balanced_weights(run: Run) -> Tensor | None:
    """Weights of the classes in the loss, where the configuration wants them."""
    if run.config.class_weights != "balanced":
        return None
    labels = [run.photos.labels[index] for index in run.split["train"]]
    return class_weights(labels, len(run.photos.classes)).to(run.runtime.device)


def choose_split(photos: ImageDataset, config: Config, duplicates: Sequence[Sequence[int]] = ()) -> Splits:
    """Shares of any set, exact for the fixed Flowers-17; by name the seed's and Oxford's own there."""
    shares = split_fractions(config.split)
    if is_from_flowers17(photos):
        return _split_flowers17(photos, config, shares, duplicates)
    if shares is None:
        raise UsageError(f"--split {config.split} is for flowers17 only", "give shares such as 60/20/20")
    return split_dataset(photos, shares, config.seed, duplicates)


def _split_flowers17(
    photos: ImageDataset, config: Config, shares: Sequence[float] | None, duplicates: Sequence[Sequence[int]]
) -> Splits:
    """The whole set is split; then the photos that are excluded drop out, so that no other one moves."""
    if config.split.startswith("oxford"):
        return official_split(photos, int(config.split[-1]))
    whole = dataclasses.replace(whole_set(photos.root), groups=photos.groups)
    counts: Sequence[int] = SEED_COUNTS
    if shares is not None:
        val, test = (round(share * len(whole)) for share in shares[1:])
        counts = (len(whole) - val - test, val, test)
    place = {path: number for number, path in enumerate(whole.paths)}
    groups = [[place[photos.paths[index]] for index in group] for group in duplicates]
    return by_file_name(exact_split(whole, counts, config.seed, groups), photos)
