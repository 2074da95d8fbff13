"""What a run will cost on this machine, tried out, and epochs that fit into the time there is."""

import dataclasses
import time

import torch

from flowers_torch.config import Config, Stage
from flowers_torch.evaluation.selective import REFERENCE_PHOTOS
from flowers_torch.models.freeze import apply_rules, freeze_table, set_train_mode
from flowers_torch.runs.experiment import Run, augments_batches, loading, photo_dataset, prepare, stage_rules
from flowers_torch.training.estimate import estimate
from flowers_torch.log import log


def dry_run(config: Config) -> None:
    """Shows data, network, stages, memory and time of a configuration, and writes nothing."""
    run = prepare(config)
    for number, stage in enumerate(config.stages, start=1):
        groups = apply_rules(run.model, stage_rules(run.model, stage))
        set_train_mode(run.model, stage.batch_norm)
        steps = f"{stage.epochs} epochs, {stage.optimizer}, lr {stage.lr:g}"
        how = "a linear head, fitted by L-BFGS" if stage.is_fitted else steps
        log.info(f"stage {number}  {stage.name}: {how}")
        log.info(freeze_table(run.model, groups, None if stage.is_fitted else stage.lr))
        cost = stage_cost(run, stage)
        minutes = (cost.front_seconds + stage.epochs * cost.epoch_seconds) / 60
        log.info(f"  about {minutes:.1f} minutes and {cost.memory_bytes / 2**30:.1f} GiB")


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage costs on this machine, tried out."""

    front_seconds: float  # before the first epoch: what the frozen front answers, where that is stored
    epoch_seconds: float  # training and validation, photos read in between
    closing_seconds: float  # a validation, the test, and some training photos for what is familiar
    memory_bytes: int


def stage_cost(run: Run, stage: Stage) -> StageCost:
    """Tries a stage out on a few photos; the network and the random streams are as before afterwards."""
    buffers = {name: value.clone() for name, value in run.model.named_buffers()}
    apply_rules(run.model, stage_rules(run.model, stage))
    set_train_mode(run.model, stage.batch_norm)
    size, batch = run.info.preprocessing.size, run.config.batch_size
    photos = photo_dataset(run, "train", stage.augment, augments_batches(run.config, stage.augment))
    with torch.random.fork_rng(devices=[]):
        step = run.runtime.fused(run.model, size)
        needs = estimate(step, size, batch, run.runtime, stage.optimizer)
        started = time.monotonic()
        tried = [photos[0, position] for position in range(min(4, len(photos)))]
        reading = (time.monotonic() - started) / len(tried) / max(1, loading(run)["workers"])
    for name, value in run.model.named_buffers():
        value.copy_(buffers[name])
    train, val, test = (len(run.split[part]) for part in ("train", "val", "test"))
    predict = needs.predict_seconds + reading
    closing = (val + test + min(train, REFERENCE_PHOTOS)) * predict
    if views := stage.stored_views(train):  # an epoch is then the tail's, which is what is not the front's
        tail = max(0.0, needs.train_seconds - needs.predict_seconds)
        return StageCost((views * train + val) * predict, train * tail, closing, needs.memory_bytes)
    epoch = train * (needs.train_seconds + reading) + val * predict
    return StageCost(0.0, epoch, closing, needs.memory_bytes)


def fit_to_clock(run: Run, started: float) -> None:
    """Takes epochs off the stages, the longest first, until the run fits into its minutes.

    Each stage keeps an epoch; should even that be too much, training stops at the deadline.

    Args:
        run: Its configuration gets the new epochs, so that a resumed run has them too.
        started: When the run began, on the monotonic clock.
    """
    costs = [stage_cost(run, stage) for stage in run.config.stages]
    run.closing_seconds = 1.5 * costs[-1].closing_seconds
    left = 60 * run.config.minutes - (time.monotonic() - started) - run.closing_seconds
    left -= sum(cost.front_seconds for cost in costs)
    epochs = [stage.epochs for stage in run.config.stages]

    def seconds(number: int) -> float:
        return epochs[number] * costs[number].epoch_seconds

    while sum(map(seconds, range(len(epochs)))) > left and max(epochs) > 1:
        longest = max((n for n in range(len(epochs)) if epochs[n] > 1), key=seconds)
        epochs[longest] -= 1
    pairs = zip(run.config.stages, epochs, strict=True)
    stages = [dataclasses.replace(stage, epochs=count) for stage, count in pairs]
    run.config = dataclasses.replace(run.config, stages=stages)
    planned = ", ".join(f"{stage.name} {stage.epochs}" for stage in stages)
    log.info(f"time     {run.config.minutes:g} minutes are enough for these epochs: {planned}")
