"""One stage of training: its epochs, from wherever it stands to its end."""

import dataclasses
import functools
import time
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.config import Stage
from flowers_torch.data.loading.batches import TrainingBatches
from flowers_torch.data.loading.loaders import derived_seed
from flowers_torch.data.loading.cached_features import CachedFeatureBatches
from flowers_torch.errors import DataError, StoppedError, UsageError
from flowers_torch.evaluation.predictions import Predictions
from flowers_torch.evaluation.calibration import fit_temperature
from flowers_torch.evaluation.metrics import score
from flowers_torch.evaluation.summary import describe_epoch
from flowers_torch.runs.feature_cache import Front, compute_front
from flowers_torch.models.split_model import SplitModel
from flowers_torch.accelerate.conv_bn import noise
from flowers_torch.models.freeze import apply_rules, decay_by_layer, freeze_table, set_train_mode
from flowers_torch.accelerate.fused_step import fuse
from flowers_torch.models.heads import classifier_name
from flowers_torch.runs.experiment import Run, balanced_weights, predict_part, stage_rules, training_batches
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import (
    CRITERION,
    RunState,
    Checkpoint,
    Checkpointer,
    restore_train_state,
    checkpoint_files,
)
from flowers_torch.training.distributed import SINGLE_PROCESS
from flowers_torch.training.step import train_epoch
from flowers_torch.training.linear_probe import fit_linear_probe
from flowers_torch.log import bar, log, write_tensorboard
from flowers_torch.training.optimizers import learning_rate, make_optimizer
from flowers_torch.training.schedules import out_of_patience, plateau_multiplier
from flowers_torch.accelerate.compiled import compile_step
from flowers_torch.training.regularization import make_average, make_penalty
from flowers_torch.training.state import TrainState, read_every, read_steps
from flowers_torch.training.stopping import StopRequest


def train_stage(
    run: Run, saver: Checkpointer, validation: Any, stop: StopRequest, saved: Checkpoint | None = None
) -> None:
    """Trains the stage that the progress stands in, and moves the progress to the next one.

    Args:
        run: What the run works on.
        saver: Holds the progress, and keeps it.
        validation: Batches of the validation photos.
        stop: Looked at after each batch.
        saved: The state to go on from, where it was saved in this stage.

    Raises:
        StoppedError: a signal came; everything is saved.
        DivergedError: the loss or a gradient is not finite.
    """
    config, progress, number = run.config, saver.progress, saver.progress.stage
    stage = config.stages[number]
    if stage.is_fitted:
        return fit_head(run, saver, stop)
    epochs_before = sum(earlier.epochs for earlier in config.stages[:number])
    log.info(f"stage {number + 1}  {stage.name}: {stage.epochs} epochs, {stage.optimizer}")
    batches: TrainingBatches | CachedFeatureBatches
    training, batches = begin_stage(run, stage, number)
    if saved:
        restore_train_state(training, saved)
    saver.check_space(training)

    def leave_if_asked(_: int = 0) -> None:
        stop.number = int(run.world.most(stop.number))  # all processes leave after the same batch
        if stop.signal_name:
            saver.save(training)
            fix = f"go on with {command_line('flowers-torch', 'train', '--resume', run.folder)}"
            raise StoppedError(f"stopped by {stop.signal_name}; all is saved", fix, stop.number)

    front = compute_front(run, stage, leave_if_asked)
    run.pooled = front.made if front and front.is_pooled else None
    if front:
        validation, device = front.validation, run.runtime.device
        batches = CachedFeatureBatches(front.training, batches.labels, batches.order, batches.paths, device)
    set_train_mode(run.model, stage.batch_norm)
    network = fast_network(run, training.evaluated, front)
    if run.world.size == 1:
        same = training.evaluated is run.model
        training.called = network if same else fast_network(run, run.model, front)
    if not run.pooled:
        quicken_step(run, training, front)
    order, names = batches.order, batches.paths.__getitem__
    steps, warmup = stage.epochs * len(order), round(stage.warmup_epochs * len(order))

    def time_is_up() -> bool:
        return config.minutes > 0 and bool(run.world.most(stop.time_is_up()))

    while progress.epoch < stage.epochs and not out_of_patience(
        stage_values(progress, CRITERION), stage.patience
    ):
        started = time.monotonic() - progress.seconds
        set_train_mode(training.called or run.model, stage.batch_norm)
        order.epoch, order.skip = epochs_before + progress.epoch, progress.step
        first_step = progress.epoch * len(order) + progress.step
        highest = stage.lr * _plateau(stage, progress)
        rate = functools.partial(
            learning_rate, steps=steps, lr=highest, schedule=stage.schedule, warmup=warmup
        )
        title = f"{stage.name} {progress.epoch + 1}/{stage.epochs}"
        try:
            with bar(title, order.count, progress.sums.photos) as meter:
                for _ in train_epoch(training, batches, progress.sums, first_step, rate, names):
                    progress.step += 1
                    progress.seconds = time.monotonic() - started
                    meter.update(progress.sums.photos - meter.n)
                    meter.set_postfix_str(
                        f"loss {progress.sums.mean_loss:.3f}, acc {progress.sums.accuracy:.3f}"
                    )
                    leave_if_asked()
                    saver.save_if_due(training)
                    if time_is_up():
                        read_steps(training)
                        break
            progress.seconds = time.monotonic() - started  # a GPU's last steps have been waited for
            run.world.copy_buffers(training.evaluated)
            answers = predict_part(run, "val", network, validation, leave_if_asked)
        except DataError:  # a photo went missing or broke: what is done so far is not lost with it
            saver.save(training)  # guard: D32
            raise
        sums, seconds = progress.sums, time.monotonic() - started
        speed = sums.photos / progress.seconds
        lr = rate(progress.epoch * len(order))
        row = _row(stage, progress, lr, sums.mean_loss, sums.accuracy, answers, seconds, speed)
        log.info(describe_epoch(row, stage.epochs))
        if config.tensorboard and run.world.is_main:
            write_tensorboard(run.folder / "tensorboard", row, epochs_before + progress.epoch)
        saver.end_epoch(row, training.evaluated)
        if progress.best is row:
            run.best_answers = answers
        saver.save_if_due(training, force=progress.epoch == stage.epochs)
        if time_is_up():
            log.info(f"time     the {config.minutes:g} minutes are used; the best weights so far are tested")
            progress.stage, progress.epoch = len(config.stages), 0
            saver.save(training)
            return
    if progress.epoch < stage.epochs:
        waited = f"{stage.patience} epochs without a lower calibrated validation loss"
        log.info(f"stage {number + 1}  ends early: {waited}")
        run.model.load_state_dict(saver.best_so_far())
    progress.stage, progress.epoch = number + 1, 0


def fast_network(run: Run, model: nn.Module, front: Front | None = None) -> nn.Module:
    """What a step calls in place of a network in its training modes: its tail behind a front, fused."""
    if front and front.is_pooled:
        return front.tail_of(model)
    size = run.info.preprocessing.size
    if not front:
        return run.runtime.fused(model, size)
    return fuse(front.tail_of(model), front.made.front(run.runtime.images(noise(size))).float())


def quicken_step(run: Run, training: TrainState, front: Front | None = None) -> None:
    """Has the step compiled, or captured as a CUDA graph, where the configuration wants that."""
    config = run.config
    training.quick = compile_step(
        front.tail_of(run.model) if front else run.model,  # not fused: that is for oneDNN, not for compilers
        run.runtime,
        config.batch_size,
        training.micro_batch,
        run.world.size,
        config.compile,
        config.cuda_graph,
    )
    if training.quick:
        training.called = training.quick.network


def fit_head(run: Run, saver: Checkpointer, stop: StopRequest) -> None:
    """A stage that fits a linear head to its optimum, on stored features, instead of by steps.

    Of several processes the main one does that for all.

    Raises:
        StoppedError: a signal came; finished views without chance are known when the stage begins anew.
        UsageError: the features cannot be stored.
    """
    progress, stage = saver.progress, run.config.stages[saver.progress.stage]
    log.info(f"stage {progress.stage + 1}  {stage.name}: a linear head, fitted by L-BFGS")
    training, _ = begin_stage(run, stage, progress.stage)
    row: dict[str, Any] = {}
    if run.world.is_main:
        alone = dataclasses.replace(run, world=SINGLE_PROCESS)
        row, answers, made = _fitted(alone, stage, progress, training.class_weights, stop)
    run.world.copy_model(run.model)
    row = run.world.tell(row)
    saver.end_epoch(row, run.model)
    if run.world.size == 1:  # several answer again later, each its share
        run.pooled = made
        run.best_answers = answers if progress.best is row else run.best_answers
    progress.stage, progress.epoch = progress.stage + 1, 0
    saver.save(training)


def _fitted(
    run: Run, stage: Stage, progress: RunState, class_weights: Tensor | None, stop: StopRequest
) -> tuple[dict[str, Any], Predictions, SplitModel]:
    """Fits the head of the run's network; the history's row, answers to the validation photos, the cut."""
    started = time.monotonic()

    def leave_if_asked(_: int = 0) -> None:
        if stop.number:
            saved = checkpoint_files(run.folder)
            fix = (
                f"go on with {command_line('flowers-torch', 'train', '--resume', run.folder)}"
                if saved
                else "start again"
            )
            raise StoppedError(f"stopped by {stop.signal_name}", fix, stop.number)

    front = compute_front(run, stage, leave_if_asked)
    if front is None:
        raise UsageError("optimizer lbfgs cannot store the features here", "raise cache_gib, or use adamw")
    photos = torch.tensor([run.photos.labels[index] for index in run.split["train"]])
    labels = photos.repeat(len(front.training) // len(photos))
    probe, l2 = fit_linear_probe(
        (front.training, labels),
        (front.validation.values, front.validation.labels),
        len(run.photos.classes),
        class_weights.cpu() if class_weights is not None else None,
        run.config.label_smoothing,
    )
    head: nn.Linear = run.model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        for parameter, value in zip((head.weight, head.bias), probe.layer(), strict=True):
            parameter.copy_(value)
    fitted = score(probe.logits(front.training), labels)
    answers = predict_part(run, "val", front.made.tail, front.validation, leave_if_asked)
    seconds = time.monotonic() - started
    row = _row(stage, progress, None, fitted.loss, fitted.accuracy, answers, seconds, len(labels) / seconds)
    log.info(f"{describe_epoch(row, 1)}, penalty {l2:g}")
    return row, answers, front.made


def begin_stage(run: Run, stage: Stage, number: int) -> tuple[TrainState, TrainingBatches]:
    """Freezes and thaws, says so, and makes the fresh optimiser and the batches of a stage."""
    config, model = run.config, run.model
    groups = decay_by_layer(apply_rules(model, stage_rules(model, stage)), stage.layer_decay)
    set_train_mode(model, stage.batch_norm)
    log.info(freeze_table(model, groups, None if stage.is_fitted else stage.lr))
    name = "sgd" if stage.is_fitted else stage.optimizer  # never steps; a saved state needs one
    optimizer = make_optimizer(name, model, groups, stage.weight_decay, stage.momentum)
    training = TrainState(
        model,
        optimizer,
        run.runtime.scaler(),
        run.runtime,
        balanced_weights(run),
        config.label_smoothing,
        config.auxiliary_weight,
        config.clip_grad,
        config.micro_batch,
        make_penalty(model, classifier_name(model), stage.l1, stage.l2, stage.l2_sp),
        make_average(model, config.ema),
        run.world,
        run.world.wrap(model),
        derived_seed(config.seed, number),
        read_every=read_every(optimizer, run.runtime.device),
    )
    return training, training_batches(run, stage)


def _row(
    stage: Stage,
    progress: RunState,
    lr: float | None,
    loss: float,
    accuracy: float,
    validation: Predictions,
    seconds: float,
    speed: float,
) -> dict[str, Any]:
    """An epoch's row of the history; loss and accuracy are those of the training photos."""
    val = score(validation.logits, validation.labels)
    temperature = fit_temperature(validation.logits, validation.labels)
    return {
        "stage": stage.name,
        "epoch": progress.epoch + 1,
        "lr": lr,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "val_loss": val.loss,
        "val_calibrated_loss": score(validation.logits / temperature, validation.labels).loss,
        "val_accuracy": val.accuracy,
        "seconds": seconds,
        "images_per_second": speed,
        "changes": len(progress.changes),
    }


def stage_values(progress: RunState, key: str) -> list[float]:
    """A column of the history over the stage's finished epochs."""
    first = len(progress.history) - progress.epoch
    return [row[key] for row in progress.history[first:]]


def _plateau(stage: Stage, progress: RunState) -> float:
    if stage.schedule != "plateau":
        return 1.0
    # Not the criterion that keeps weights: Keras's ReduceLROnPlateau watches the plain validation loss.
    return plateau_multiplier(
        stage_values(progress, "val_loss"), stage.plateau_factor, stage.plateau_patience
    )
