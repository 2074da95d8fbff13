"""The fixed inputs of a run: configuration, device, images, splits and model metadata."""

import dataclasses
import functools
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowers_torch import __version__
from flowers_torch.accelerate import Acceleration
from flowers_torch.accelerate.known_tuning import KnownTuning
from flowers_torch.config import Config, split_fractions, with_absolute_paths
from flowers_torch.config_file import load_config, to_toml
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.filter import FilteredDataset
from flowers_torch.data.splits.assign import Splits, describe_splits, is_imbalanced
from flowers_torch.data.splits.split_file import DataChanges, load_split, save_split
from flowers_torch.errors import DataError, ModelFileError, UsageError, plural, printable
from flowers_torch.files.atomic import write_text
from flowers_torch.files.tensors import safe_load
from flowers_torch.log import log
from flowers_torch.models.checkpoint import ModelInfo, build, load_classifier
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.registry import input_options
from flowers_torch.models.standardize import Standardize
from flowers_torch.models.timm_networks import unseen_border
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.runs.dataset import choose_splits, log_reading, on_this_machine, open_images
from flowers_torch.runs.feature_cache import FeatureCache
from flowers_torch.runs.fingerprint import check_exact, fingerprint
from flowers_torch.runs.loaders import Loaders
from flowers_torch.runs.mirroring import choose_mirror, mirrors_in_training
from flowers_torch.training.checkpoint import MODEL_FILE, Checkpoint, read_newest_checkpoint, restore_model
from flowers_torch.training.device import Runtime, choose_runtime, runtime_of_run
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed
from flowers_torch.training.estimate import busy_note

# Takes the row of the epoch in the history, such as {"stage": "head", "epoch": 1, "val_accuracy": 0.9, ...}.
Callback = Callable[[dict[str, Any]], object]


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the caller of a run wants to be called, in the main process.

    `after_test` takes the run folder, whose results are written and whose report is not.
    """

    after_epoch: Sequence[Callback] = ()
    after_test: Callable[[Path], object] | None = None


NO_HOOKS = Hooks()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run works on. `new`, `resume` and `open` make one, and return the network beside it."""

    config: Config  # resolved, with absolute paths
    runtime: Runtime
    distributed: Distributed
    filtered: FilteredDataset
    splits: Splits
    info: ModelInfo  # not yet calibrated
    folder: Path = Path()  # empty before there is one
    hooks: Hooks = NO_HOOKS

    @property
    def dataset(self) -> ImageDataset:
        """The images that were not filtered out."""
        return self.filtered.dataset

    @functools.cached_property
    def acceleration(self) -> Acceleration:
        return Acceleration.parse(self.config.accelerate)

    @functools.cached_property
    def loaders(self) -> Loaders:
        return Loaders(self.config, self.dataset, self.info, self.runtime, self.distributed)

    @functools.cached_property
    def features(self) -> FeatureCache:
        """Features in front of the head. All processes ask for them together, and each computes its shard."""
        return FeatureCache(self.loaders, self.info, self.acceleration, self.config.cache_bytes)

    @classmethod
    def new(
        cls, config: Config, distributed: Distributed = SINGLE_PROCESS, splits: Splits | None = None
    ) -> tuple["Experiment", nn.Module]:
        """A new run; nothing is written yet. `splits`, if given, replace the configuration's own.

        Of several processes the main one goes first: it downloads, tunes and refuses for all. The photos are
        decoded by all of them.

        Raises:
            FlowersError: the images, the weights or the device cannot be used; its text says what to change.
        """
        made: list[tuple[Experiment, nn.Module]] = []

        def prepare() -> tuple[Config, FilteredDataset, Splits]:
            made.append(_prepare(config, distributed, splits))
            experiment, _ = made[0]
            return experiment.config, experiment.filtered, experiment.splits

        config, filtered, splits = distributed.lead(prepare)
        if not made and distributed.local_rank == 0:
            made.append(_prepare(config, distributed, splits, filtered))  # the main process of another machine
        distributed.barrier()
        experiment, model = made[0] if made else _prepare(config, distributed, splits, filtered)
        experiment = dataclasses.replace(experiment, distributed=distributed.with_time_for(len(filtered.dataset)))
        experiment._fit_standardization(model)
        return experiment._with_mirror(model), model

    def _fit_standardization(self, model: nn.Module) -> None:
        """Fits the network's first layer to the training images, unless weights brought its statistics."""
        layers = [layer for layer in model.modules() if isinstance(layer, Standardize)]
        for layer in layers if self.config.weights == "none" else ():
            if self.distributed.is_main:
                layer.fit(images for images, *_ in self.loaders.unsharded().in_order(self.splits["train"]))
                log.info(f"input    {layer.kind} standardization of {plural(self.splits['train'], 'training photo')}")
            self.distributed.broadcast_tensors(layer.buffers())

    def _with_mirror(self, model: nn.Module) -> "Experiment":
        """The run with the choice whether photos are mirrored, which the main process makes."""
        config, distributed = self.config, self.distributed
        arguments = (self.loaders.unsharded(), self.info, self.acceleration, config.cache_bytes)
        made = distributed.is_main and choose_mirror(
            config, self.filtered, self.splits, FeatureCache(*arguments), model, mirrors_in_training(config)
        )
        return dataclasses.replace(self, info=dataclasses.replace(self.info, mirror=distributed.broadcast(made)))

    def with_feature_set(self, name: str) -> "Experiment":
        """The run whose classifier takes another feature set, with the same images and features in memory."""
        changed = dataclasses.replace(self, info=dataclasses.replace(self.info, features=name))
        vars(changed).update(loaders=self.loaders, features=self.features)
        return changed

    @classmethod
    def resume(
        cls,
        folder: Path,
        distributed: Distributed = SINGLE_PROCESS,
        changes: dict[str, Any] | None = None,
        allow_config_change: bool = False,
        allow_data_change: bool = False,
    ) -> tuple["Experiment", nn.Module, Checkpoint]:
        """An interrupted run with its newest valid checkpoint; arguments and errors as of `recipe.resume`."""
        with distributed.main_first():
            stored = load_config(file=str(folder / "config.toml"))
            config = with_absolute_paths(load_config(file=str(folder / "config.toml"), overrides=changes))
            checkpoint = read_newest_checkpoint(folder)
            if checkpoint.state.best:
                safe_load(folder / MODEL_FILE)  # if it were damaged, all further work would be in vain
            runtime = choose_runtime(distributed.device(config.device), config.precision, config.threads)
            now = fingerprint(config, runtime, distributed.size)
            change = check_exact(checkpoint.fingerprint, now, folder, allow_config_change)

        def read_images() -> tuple[FilteredDataset, Splits, DataChanges]:
            filtered = open_images(config, folder, distributed.spread)
            splits, data_change = load_split(folder / "split.json", filtered.dataset, distributed.spread)
            if data_change:
                log.info(f"the photos have changed since the run began:\n{data_change.table()}")
                if not allow_data_change:  # guard: D31 resume
                    data_change.refuse(folder / "split.json", "restore them, or add --allow-data-change")
            return filtered, splits, data_change

        filtered, splits, data_change = distributed.lead(read_images)
        distributed = distributed.with_time_for(len(filtered.dataset))
        with distributed.main_first():
            filtered = on_this_machine(filtered, config)
            if data_change:
                checkpoint.state.restart_epoch(data_change.counts())
            if change:
                checkpoint.state.restart_epoch({"options": change})
            if checkpoint.state.stage > len(config.stages):  # guard: S8 stage
                what = f"{printable(checkpoint.path)} is in stage {checkpoint.state.stage} of {len(config.stages)}"
                raise ModelFileError(what, "start a new run")
            model = build(checkpoint.info)
            restore_model(model, checkpoint)
        distributed.barrier()  # every process has read what is written now
        if distributed.is_main and (change or config.data != stored.data):
            heading = f"changed: {change or f'the photos are now at {printable(config.data, 1000)}'}"
            write_text(folder / "config.toml", to_toml(config, heading))
        if distributed.is_main and data_change:
            save_split(splits, filtered.dataset, folder / "split.json", config.seed)
        experiment = cls(config, runtime, distributed, filtered, splits, checkpoint.info, folder)
        return experiment, runtime.place(model), checkpoint

    @classmethod
    def open(cls, folder: Path, device: str = "auto", data: str = "") -> tuple["Experiment", nn.Module]:
        """A finished run with its best weights, in a precision for this machine; `data` is where its images are now.

        Raises:
            DataError: not a run folder, or its images have moved or changed.
            ModelFileError: no weights, or damaged ones.
        """
        if not (folder / "config.toml").is_file():
            what = f"{printable(folder)} is not a run folder: expected a config.toml in it"
            raise DataError(what, "name the folder that training wrote")
        config = with_absolute_paths(load_config(data=data, file=str(folder / "config.toml")))
        model, info = load_classifier(folder)
        filtered = open_images(config, folder)
        runtime = runtime_of_run(device, config.precision)
        splits, changes = load_split(folder / "split.json", filtered.dataset)
        changes.refuse(folder / "split.json", "restore the photos that the run was trained and tested on")
        return cls(config, runtime, SINGLE_PROCESS, filtered, splits, info, folder), runtime.place(model)


def _prepare(
    config: Config, distributed: Distributed, splits: Splits | None, filtered: FilteredDataset | None = None
) -> tuple[Experiment, nn.Module]:
    """Images, splits, network and precision of a configuration, each with a line in the log.

    `filtered` are the images as the main process found them.
    """
    log.info(f"flowers_torch {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    smallest = 2 * distributed.size
    if config.batch_size < smallest:
        what = f"--batch-size {config.batch_size} is too small for {distributed.size} processes"
        raise UsageError(what, f"use {smallest} or more")
    Acceleration.parse(config.accelerate)  # a mistake in it is found before images are read
    runtime = choose_runtime(distributed.device(config.device), config.precision, config.threads)
    weights = config.weights or ("none" if config.data == "demo" else "imagenet")
    plan = plan_weights(config.arch, weights, config.keras_input, config.model_options)
    size = config.size or plan.preprocessing.size
    stretch = config.resize == "stretch" if config.resize else plan.preprocessing.stretch
    plan = plan.for_size(size, input_options(config.arch, size, config.model_options))

    filtered = on_this_machine(filtered, config) if filtered else open_images(config, spread=distributed.spread)
    dataset = filtered.dataset
    log_reading(dataset)
    for line in filtered.warnings:
        log.info(f"note     {line}")
    asked = () if splits else split_fractions(config.split) or ()
    splits = splits or choose_splits(dataset, config, filtered.duplicates)
    log.info(f"data     {dataset.name}: {describe_splits(dataset, splits, asked)}")
    if is_imbalanced(dataset) and config.class_weights == "none":
        log.info('note     rare classes count less in the loss; class_weights = "balanced" changes that')

    value_range = filtered.value_range or plan.preprocessing.value_range
    preprocessing = dataclasses.replace(plan.preprocessing, size=size, stretch=stretch, value_range=value_range)
    head = (config.head_hidden, config.dropout, config.head_norm, config.head, plan.options | config.model_options)
    source = (plan.source, plan.license)
    info = ModelInfo(config.arch, dataset.classes, preprocessing, *head, *source, features=plan.features)
    torch.manual_seed(config.seed)
    model = build(info)
    loaded = load_weights(model, config.arch, plan, info.classes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info(f"network  {config.arch}, {parameters:,} parameters, input {size} px; {loaded}")
    if border := unseen_border(model, size):
        log.info(f"note     {border}")
    if plan.license:
        log.info(f"weights  {plan.source}, license: {plan.license}")
    experiment = Experiment(config, runtime, distributed, filtered, splits, info)
    runtime = _tune(experiment, runtime.place(model))
    stages = ", ".join(f"{stage.name} {stage.epochs} x ({stage.trains})" for stage in config.stages)
    steps = f"each epoch has {plural(splits['train'], 'photo')} of {size} px, {config.batch_size} per step"
    log.info(f"plan     {stages}; {steps}{_duration(config, splits, runtime.rate)}")
    # What was chosen becomes part of the configuration, so that a resumed run does not choose again.
    config = with_absolute_paths(dataclasses.replace(config, weights=weights, precision=runtime.precision))
    return dataclasses.replace(experiment, config=config, runtime=runtime), model


def _tune(experiment: Experiment, model: nn.Module) -> Runtime:
    """Chooses the precision by a step of the last stage that trains more than the head."""
    runtime, acceleration, size = experiment.runtime, experiment.acceleration, experiment.info.preprocessing.size
    beyond_head = [stage for stage in experiment.config.stages if stage.train != "head"]
    stage = (beyond_head or experiment.config.stages)[-1]
    apply_rules(model, rules_for(model, stage.train))
    set_train_mode(model, stage.batch_norm)
    how = (size, bool(beyond_head), sorted(acceleration.tricks), experiment.distributed.size)
    tuning = KnownTuning(runtime, model, *how)
    if known := tuning.recall():
        runtime = known
    else:
        network = acceleration.training_network(model, runtime, size) if experiment.distributed.size == 1 else model
        ahead = images_ahead(experiment.config, experiment.splits)
        with busy_note(runtime.device):
            found = acceleration.tuned(runtime, network, size, bool(beyond_head), ahead)
        if found.tuned:
            tuning.remember(found)
        runtime = found
    log.info(f"device   {runtime.device}, {runtime.precision} ({runtime.reason})")
    return runtime


def images_ahead(config: Config, splits: Splits) -> int:
    """Images that the stages and the test compute; one of two epochs counts twice."""
    train, val, images = (len(splits[split]) for split in ("train", "val", "test"))
    for stage in config.stages:
        views = stage.views_to_cache(train)
        images += views * train + val if views else stage.epochs * (train + val)
    return images


def _duration(config: Config, splits: Splits, images_per_second: float) -> str:
    """An upper bound of the duration, from the speed of one step."""
    if not images_per_second:
        return ""
    seconds = images_ahead(config, splits) / images_per_second
    duration = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{math.ceil(seconds)} seconds"
    return f"; at most about {duration}"
