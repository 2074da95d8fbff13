"""One stage of training by steps: it begins, runs its epochs, and ends."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flowers_torch.config import Stage
from flowers_torch.data.loading.batches import TrainingBatches
from flowers_torch.data.loading.gpu_cache import CachedFeatureBatches
from flowers_torch.data.loading.loaders import derived_seed
from flowers_torch.errors import DataError, StoppedError, plural
from flowers_torch.evaluation.metrics import describe_epoch, fit_temperature, score
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.log import bar, log
from flowers_torch.models.freeze import apply_rules, decay_by_layer, freeze_table, rules_for, set_train_mode
from flowers_torch.models.split_model import SplitModel
from flowers_torch.runs.experiment import Experiment, images_ahead
from flowers_torch.runs.feature_cache import Check
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import (
    CRITERION,
    Checkpoint,
    Checkpointer,
    RunState,
    checkpoint_files,
    restore_train_state,
)
from flowers_torch.training.optimization import (
    learning_rate,
    make_average,
    make_optimizer,
    make_penalty,
    out_of_patience,
    plateau_multiplier,
)
from flowers_torch.training.state import TrainState, read_steps
from flowers_torch.training.step import balanced_class_weights, train_epoch
from flowers_torch.training.stopping import StopRequest, StopTraining

Batches = TrainingBatches | CachedFeatureBatches
Features = tuple[SplitModel, Tensor, CachedFeatureBatches]  # of training (views * images, D) and validation
READ_INTERVAL = {"cuda": 20}  # steps between two readings of the loss; a GPU would wait at each one
# Least batches of a run for which cuDNN times its kernels. With InceptionV3 at 75 px on an H200 (four runs, each beside
# others) the first epoch took as much more time as 150 to 520 later steps; faster kernels save a part of each.
SEARCH_BATCHES = 1000


@dataclasses.dataclass(frozen=True)
class StageWork:
    """What the epochs of a stage work with. Only `train` and the checkpointer's state change."""

    stage: Stage
    train: TrainState
    batches: Batches
    validation: Batches
    evaluated: nn.Module  # the network that validation calls
    epochs_before: int  # of earlier stages
    check: Check  # raises an error when a signal came


def train_stage(
    experiment: Experiment,
    model: nn.Module,
    checkpointer: Checkpointer,
    stop: StopRequest,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Trains the stage that the run is in, and moves the run to the next one.

    Args:
        checkpointer: Holds the run's state and saves it.
        stop: Checked after each batch.
        checkpoint: What to continue from, if it was saved in this stage.

    Raises:
        StoppedError: a signal came; everything is saved.
        DivergedError: the loss or a gradient is not finite.
    """
    work = _begin(experiment, model, checkpointer, stop, checkpoint)
    stage, state = work.stage, checkpointer.state
    while state.epoch < stage.epochs and not _ends_early(stage, state):
        _run_epoch(experiment, work, checkpointer, stop)
        reason = run_callbacks(experiment, state)
        if stop.time_is_up(experiment.distributed):
            reason = f"time     {experiment.config.minutes:g} minutes are over"
        if reason:
            log.info(f"{reason}; the best weights are tested")
            state.stage, state.epoch = len(experiment.config.stages), 0
            checkpointer.save(work.train)
            return
    if state.epoch < stage.epochs:
        waited = f"{plural(stage.patience, 'epoch')} without a better validation loss"
        log.info(f"stage    {stage.name} ends early: {waited}")
        checkpointer.save(work.train)  # the best weights may not be in the folder yet
        model.load_state_dict(checkpointer.best_weights())
    state.stage, state.epoch = state.stage + 1, 0


def _begin(
    experiment: Experiment,
    model: nn.Module,
    checkpointer: Checkpointer,
    stop: StopRequest,
    checkpoint: Checkpoint | None,
) -> StageWork:
    """Freezes, makes a fresh optimizer and the batches, or restores them from a checkpoint."""
    config, number = experiment.config, checkpointer.state.stage
    stage, train_indices = config.stages[number], experiment.splits["train"]
    place = f"{number + 1} of {len(config.stages)}"
    log.info(f"stage    {place}, {stage.name}: {plural(stage.epochs, 'epoch')}, {stage.optimizer}")
    train = make_train_state(experiment, model, stage, number)
    batches: Batches = experiment.loaders.training(train_indices, stage.augment, stage.mixup)
    validation: Batches = experiment.loaders.in_order(experiment.splits["val"])
    if checkpoint:
        restore_train_state(train, checkpoint)
    checkpointer.check_space(train)
    check = functools.partial(_leave_if_stopped, experiment, checkpointer, train, stop)

    features = None
    if stage.views_to_cache(len(train_indices)):
        features = stage_features(experiment, model, stage, check)
        if features is None:
            log.info("features are not cached; the backbone runs in every epoch")
    if features:
        _, seen, validation = features
        device = experiment.runtime.device
        batches = CachedFeatureBatches(seen, batches.labels, batches.order, batches.paths, device)
    set_train_mode(model, stage.batch_norm)
    evaluated = _fast_network(experiment, train.evaluated, features)
    if experiment.distributed.size > 1:
        train.network = experiment.distributed.wrap(features[0].head_of(model) if features else model)
    else:
        same = train.evaluated is model
        train.network = evaluated if same else _fast_network(experiment, model, features)
        compiled = None if features else experiment.acceleration.compiled(model, config.batch_size)
        if compiled:
            train.network, train.compiled = model, compiled
    epochs_before = sum(earlier.epochs for earlier in config.stages[:number])
    return StageWork(stage, train, batches, validation, evaluated, epochs_before, check)


def make_train_state(experiment: Experiment, model: nn.Module, stage: Stage, number: int) -> TrainState:
    """Freezes the network as a stage wants it, logs the outcome, and makes a fresh optimizer for its steps."""
    config, runtime = experiment.config, experiment.runtime
    groups = decay_by_layer(apply_rules(model, rules_for(model, stage.train)), stage.layer_decay)
    set_train_mode(model, stage.batch_norm)
    log.info(freeze_table(model, groups, None if stage.is_fitted else stage.lr))
    settings = (stage.weight_decay, stage.momentum, stage.nesterov)
    optimizer = None if stage.is_fitted else make_optimizer(stage.optimizer, model, groups, *settings)
    weights = None
    if config.class_weights == "balanced":
        labels = [experiment.dataset.labels[index] for index in experiment.splits["train"]]
        weights = balanced_class_weights(labels, len(experiment.dataset.classes)).to(runtime.device)
    return TrainState(
        model,
        optimizer,
        runtime.scaler(),
        runtime,
        class_weights=weights,
        label_smoothing=config.label_smoothing,
        clip_grad=config.clip_grad,
        penalty=make_penalty(model, stage.l1, stage.l2),
        average=make_average(model, config.ema),
        distributed=experiment.distributed,
        seed=derived_seed(config.seed, number),
        read_interval=READ_INTERVAL.get(runtime.device.type, 1),
        # The whole run counts: cuDNN also keeps what it chose without a search, so a later stage would not search.
        searches_kernels=images_ahead(config, experiment.splits) >= SEARCH_BATCHES * config.batch_size,
    )


def stage_features(
    experiment: Experiment, model: nn.Module, stage: Stage, check: Check, every: bool = False
) -> Features | None:
    """The network split in front of its head, and the features of the training and validation images.

    With `every` the features are those of all feature sets. None, with a reason in the log, where there are none.
    """
    indices, cache = experiment.splits["train"], experiment.features
    views = stage.views_to_cache(len(indices))
    split = cache.split(model)
    if split is None:
        log.info("features cannot be computed apart from the head")
        return None
    train = cache.features(split, indices, stage.augment, views, check, every)
    validation = cache.batches(split, experiment.splits["val"], check, every)
    if train is None or validation is None:
        log.info("features exceed cache_gib")
        return None
    views = len(train) // len(indices)
    log.info(f"features {views} {'view' if views == 1 else 'views'} of each photo, {train.nbytes / 2**20:.0f} MiB")
    return split, train, validation


def _fast_network(experiment: Experiment, model: nn.Module, features: Features | None) -> nn.Module:
    """What a step calls in place of a network: its head on cached features, or a faster form."""
    if features:
        return features[0].head_of(model)
    size = experiment.info.preprocessing.size
    return experiment.acceleration.training_network(model, experiment.runtime, size)


def _run_epoch(experiment: Experiment, work: StageWork, checkpointer: Checkpointer, stop: StopRequest) -> None:
    """One epoch, or the rest of one, and its validation."""
    stage, train, state, order = work.stage, work.train, checkpointer.state, work.batches.order
    started = time.monotonic() - state.seconds
    set_train_mode(train.network or train.model, stage.batch_norm)
    order.epoch, order.skip = work.epochs_before + state.epoch, state.step
    rate = _learning_rate(stage, state, len(order))
    title = f"{stage.name} {state.epoch + 1}/{stage.epochs}"
    names = work.batches.paths.__getitem__
    try:
        with bar(title, order.count, state.metrics.images) as meter:
            first_step = state.epoch * len(order) + state.step
            for _ in train_epoch(train, work.batches, state.metrics, first_step, rate, names):
                state.step += 1
                state.seconds = time.monotonic() - started
                meter.update(state.metrics.images - meter.n)
                meter.set_postfix_str(f"loss {state.metrics.mean_loss:.3f}, acc {state.metrics.accuracy:.3f}")
                work.check(0)
                checkpointer.save_if_due(train)
                if stop.time_is_up(experiment.distributed):
                    read_steps(train)
                    break
        state.seconds = time.monotonic() - started  # a GPU has finished its last steps
        experiment.distributed.broadcast_tensors(train.evaluated.buffers())
        local = collect(work.evaluated, work.validation, experiment.runtime, work.check, with_features=False)
        predictions = local.gathered(
            experiment.distributed, len(experiment.splits["val"]), experiment.config.batch_size
        )
    except DataError:  # an image disappeared or broke; the work so far is saved
        checkpointer.save(train)  # guard: D32
        raise
    metrics, seconds = state.metrics, time.monotonic() - started
    lr = rate(state.epoch * len(order))
    speed = metrics.images / state.seconds
    row = history_row(stage, state, lr, (metrics.mean_loss, metrics.accuracy), predictions, (seconds, speed))
    log.info(describe_epoch(row, stage.epochs))
    checkpointer.end_epoch(row, train.evaluated)
    checkpointer.save_if_due(train, force=state.epoch == stage.epochs)


def _learning_rate(stage: Stage, state: RunState, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a step of the stage, during the current epoch."""
    highest = stage.lr
    if stage.schedule == "plateau":  # Keras's ReduceLROnPlateau watches the plain validation loss
        highest *= plateau_multiplier(_stage_losses(state, "val_loss"), stage.patience)
    return functools.partial(
        learning_rate,
        steps=stage.epochs * steps_per_epoch,
        lr=highest,
        schedule=stage.schedule,
        warmup=round(stage.warmup_epochs * steps_per_epoch),
        decay=stage.lr_decay,
    )


def _ends_early(stage: Stage, state: RunState) -> bool:
    """Whether the stage is out of patience, by the criterion that also chooses the best weights."""
    losses = _stage_losses(state, CRITERION)
    return stage.schedule != "plateau" and out_of_patience(losses, stage.patience)


def _stage_losses(state: RunState, name: str) -> list[float]:
    """Validation losses of the finished epochs of the current stage."""
    first = len(state.history) - state.epoch
    return [row[name] for row in state.history[first:]]


def run_callbacks(experiment: Experiment, state: RunState) -> str:
    """Calls the callbacks with the last epoch in the main process; the reason where one of them ends training."""
    ended = False
    if experiment.distributed.is_main:
        for callback in experiment.hooks.after_epoch:
            try:
                callback(dict(state.history[-1]))
            except StopTraining:
                ended = True
    ended = bool(experiment.hooks.after_epoch) and bool(experiment.distributed.all_reduce_max(ended))
    return "stop     a callback ends training" if ended else ""


def _leave_if_stopped(
    experiment: Experiment, checkpointer: Checkpointer, train: TrainState, stop: StopRequest, images: int
) -> None:
    if stop.agreed(experiment.distributed):
        checkpointer.save(train)
        raise_if_stopped(experiment, stop, "; everything is saved")


def raise_if_stopped(experiment: Experiment, stop: StopRequest, what: str = "") -> None:
    """Raises an error with the command that resumes the run, if a signal came."""
    if stop.number:
        resume = command_line("flowers-torch", "train", "--resume", experiment.folder.absolute())
        fix = f"resume with: {resume}" if checkpoint_files(experiment.folder) else "start again"
        raise StoppedError(f"stopped by {stop.signal_name}{what}", fix, stop.number)


def history_row(
    stage: Stage,
    state: RunState,
    lr: float | None,
    training: tuple[float, float],
    validation: Predictions,
    timing: tuple[float, float],
) -> dict[str, Any]:
    """The row of an epoch in the history.

    Args:
        state: At the end of the epoch.
        lr: Learning rate at the start; None where the head was fitted in closed form.
        training: Loss and accuracy on the training images.
        validation: Of the validation images.
        timing: Seconds of the epoch, and training images per second.
    """
    val = score(validation.logits, validation.labels)
    temperature = fit_temperature(validation.logits, validation.labels)
    return {
        "stage": stage.name,
        "epoch": state.epoch + 1,
        "lr": lr,
        "train_loss": training[0],
        "train_accuracy": training[1],
        "val_loss": val.loss,
        "val_calibrated_loss": score(validation.logits / temperature, validation.labels).loss,
        "val_accuracy": val.accuracy,
        "seconds": timing[0],
        "images_per_second": timing[1],
        "changes": len(state.changes),
    }
