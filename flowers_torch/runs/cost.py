"""The cost of a run on this machine, measured on a few images, and epochs that fit into a time limit."""

import dataclasses
import operator
import time

import torch
from torch import nn

from flowers_torch.config import Config, Stage
from flowers_torch.errors import plural
from flowers_torch.evaluation.selective import REFERENCE_IMAGES
from flowers_torch.log import log
from flowers_torch.models.freeze import apply_rules, freeze_table, rules_for, set_train_mode
from flowers_torch.runs.experiment import Experiment
from flowers_torch.training.estimate import busy_note, estimate


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Measured cost of a stage."""

    features_seconds: float  # before the first epoch, where the features of a frozen backbone are cached
    epoch_seconds: float  # training and validation, with reading
    closing_seconds: float  # the last validation, the test, and the reference images of the detector
    memory_bytes: int  # network, optimizer and activations


def dry_run(config: Config) -> None:
    """Logs images, network, stages, memory and time of a configuration, and writes nothing."""
    experiment, model = Experiment.new(config)
    for stage in config.stages:
        groups = apply_rules(model, rules_for(model, stage.train))
        set_train_mode(model, stage.batch_norm)
        steps = f"{plural(stage.epochs, 'epoch')}, {stage.optimizer}, lr {stage.lr:g}"
        log.info(f"stage    {stage.name}: {'a linear head, fitted by L-BFGS' if stage.is_fitted else steps}")
        log.info(freeze_table(model, groups, None if stage.is_fitted else stage.lr))
        cost = stage_cost(experiment, model, stage)
        minutes = (cost.features_seconds + stage.epochs * cost.epoch_seconds) / 60
        log.info(f"  about {minutes:.1f} minutes and {cost.memory_bytes / 2**30:.1f} GiB")


def stage_cost(experiment: Experiment, model: nn.Module, stage: Stage) -> StageCost:
    """Tries a stage on a few images. The network's buffers and the random streams are restored."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    apply_rules(model, rules_for(model, stage.train))
    set_train_mode(model, stage.batch_norm)
    config, runtime, splits = experiment.config, experiment.runtime, experiment.splits
    size, loaders = experiment.info.preprocessing.size, experiment.loaders
    images = loaders.images(splits["train"][:4], stage.augment)
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), busy_note(runtime.device):
        network = experiment.acceleration.training_network(model, runtime, size)
        step = estimate(network, size, config.batch_size, runtime, stage.optimizer)
        started = time.monotonic()
        for position in range(len(images)):
            images[0, position]
        reading = (time.monotonic() - started) / len(images) / max(1, loaders.settings["workers"])
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    train, val, test = (len(splits[split]) for split in ("train", "val", "test"))
    predict = step.predict_seconds + reading
    closing = (val + test + min(train, REFERENCE_IMAGES)) * predict
    if views := stage.views_to_cache(train):  # an epoch then costs what the head adds to the backbone
        head = max(0.0, step.train_seconds - step.predict_seconds)
        return StageCost((views * train + val) * predict, train * head, closing, step.memory_bytes)
    epoch = train * (step.train_seconds + reading) + val * predict
    return StageCost(0.0, epoch, closing, step.memory_bytes)


def fit_to_time(experiment: Experiment, model: nn.Module, started: float) -> tuple[Experiment, float]:
    """Takes epochs off the stages, the longest one first, until the run fits into its minutes.

    Each stage keeps one epoch. If that is still too much, training stops at the deadline. `started` is on the
    monotonic clock. Also returns the seconds that are reserved for the last validation and the test.
    """
    config, closing = experiment.config, 0.0
    if experiment.distributed.is_main:
        costs = [stage_cost(experiment, model, stage) for stage in config.stages]
        closing = 1.5 * costs[-1].closing_seconds
        left = 60 * config.minutes - (time.monotonic() - started) - closing
        left -= sum(cost.features_seconds for cost in costs)
        epochs, seconds = [stage.epochs for stage in config.stages], [cost.epoch_seconds for cost in costs]
        while sum(map(operator.mul, epochs, seconds)) > left and max(epochs) > 1:
            several = (n for n, count in enumerate(epochs) if count > 1)
            epochs[max(several, key=lambda n: epochs[n] * seconds[n])] -= 1
        stages = [dataclasses.replace(stage, epochs=n) for stage, n in zip(config.stages, epochs, strict=True)]
        config = dataclasses.replace(config, stages=stages)
        planned = ", ".join(f"{stage.name} {stage.epochs}" for stage in stages)
        log.info(f"time     epochs that fit into {config.minutes:g} minutes: {planned}")
    config, closing = experiment.distributed.broadcast((config, closing))
    return dataclasses.replace(experiment, config=config), closing
