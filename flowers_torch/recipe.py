"""The recipe: configuration -> data -> network -> stages -> evaluation -> files.

This file is the method as one would tell it; each step is a call into a part that also works alone.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.config import Config, Stage, load_config, split_fractions, to_toml
from flowers_torch.data.augment import eval_transform, train_transform
from flowers_torch.data.flowers17 import official_split
from flowers_torch.data.folder import Photos
from flowers_torch.data.loaders import PhotoDataset, choose_workers, make_loader
from flowers_torch.data.sources import open_photos
from flowers_torch.data.splits import Split, describe_split, exact_split, load_split, save_split, split_photos
from flowers_torch.errors import ModelFileError, printable
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.summary import describe_scores, prediction_rows
from flowers_torch.files import write_json
from flowers_torch.models.classifier import Record, build, load_classifier, save_classifier
from flowers_torch.models.freeze import apply_rules, freeze_table, rules_for, set_train_mode
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.models.zoo import check_size
from flowers_torch.run_folder import new_run_folder, write_csv, write_origin
from flowers_torch.training.checkpoint import (
    RESUME_FILE,
    Progress,
    Saved,
    read_progress,
    restore_model,
    restore_optimizer,
    restore_random,
    save_progress,
)
from flowers_torch.training.engine import Sums, Training, class_weights, predict_logits, train_epoch
from flowers_torch.training.estimate import estimate
from flowers_torch.training.monitors import bar, log, log_file
from flowers_torch.training.optim import learning_rate, make_optimizer
from flowers_torch.training.runtime import Runtime, choose_runtime

MODEL_FILE = "model.safetensors"


@dataclasses.dataclass
class Run:
    """Everything that a run works on."""

    config: Config
    runtime: Runtime
    photos: Photos
    split: Split
    record: Record
    model: nn.Module
    folder: Path = Path()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to."""

    folder: Path
    test: Scores
    history: list[dict[str, Any]]


def train(config: Config, overwrite: bool = False, argv: list[str] | None = None) -> Result:
    """Trains from the start and leaves a run folder behind.

    Args:
        config: The resolved configuration.
        overwrite: Allow `config.out` to hold an earlier run.
        argv: The command, for the record.
    """
    run = prepare(config)
    run.folder = new_run_folder(config.out, run.photos.name, config.arch, overwrite)
    heading = f"{run.photos.name} with {config.arch}; repeat with: flowers-torch train --config config.toml"
    write_origin(run.folder, to_toml(config, heading), run.photos.classes, argv or [])
    save_split(run.split, run.photos, run.folder / "split.json", config.seed)
    with log_file(run.folder / "log.txt"):
        return _finish(run, _run_stages(run, Progress(), None))


def resume(folder: Path) -> Result | None:
    """Goes on with an interrupted run from its newest saved state; None where it had finished already.

    Raises:
        ModelFileError: the folder holds no saved state.
    """
    if not (folder / RESUME_FILE).is_file():
        if (folder / "metrics.json").is_file():
            log.info(f"nothing to do: {printable(folder)} is finished")
            return None
        raise ModelFileError(f"{printable(folder)} holds no saved state", "start the run anew")
    config = load_config(file=str(folder / "config.toml"))
    runtime = choose_runtime(config.device, config.precision, config.channels_last, config.threads)
    photos = open_photos(config.data)
    saved = read_progress(folder / RESUME_FILE)
    model = build(saved.record)
    restore_model(model, saved)
    split = load_split(folder / "split.json", photos)
    run = Run(config, runtime, photos, split, saved.record, runtime.place(model), folder)
    with log_file(folder / "log.txt"):
        progress = saved.progress
        stage = config.stages[progress.stage].name
        log.info(f"resumed {printable(folder)}: stage {stage}, epoch {progress.epoch + 1}, batch {progress.step + 1}")
        return _finish(run, _run_stages(run, progress, saved))


def prepare(config: Config) -> Run:
    """Device, photos, split and network of a configuration; nothing is written yet."""
    runtime = choose_runtime(config.device, config.precision, config.channels_last, config.threads)
    log.info(f"device   {runtime.device}, {runtime.precision} ({runtime.reason})")
    weights = config.weights or ("none" if config.data == "demo" else "imagenet")
    plan = plan_weights(config.arch, weights)
    preprocessing = dataclasses.replace(
        plan.preprocessing,
        size=config.size or plan.preprocessing.size,
        squash=config.resize == "squash" if config.resize else plan.preprocessing.squash,
    )
    check_size(config.arch, preprocessing.size)

    photos = open_photos(config.data)
    for note in photos.notes:
        log.info(f"note     {note}")
    split = _choose_split(photos, config)
    log.info(f"data     {photos.name}: {describe_split(photos, split)}")

    record = Record(
        arch=config.arch,
        classes=photos.classes,
        preprocessing=preprocessing,
        head_hidden=config.head_hidden,
        dropout=config.dropout,
        model_options=plan.options | config.model_options,
        weights=plan.source,
        licence=plan.licence,
    )
    torch.manual_seed(config.seed)
    model = build(record)
    loaded = load_weights(model, config.arch, plan)
    size = sum(parameter.numel() for parameter in model.parameters())
    log.info(f"network  {config.arch}, {size:,} parameters, input {preprocessing.size} px; {loaded}")
    if plan.licence:
        log.info(f"weights  {plan.source}, licence: {plan.licence}")
    return Run(config, runtime, photos, split, record, runtime.place(model))


def dry_run(config: Config) -> None:
    """Shows data, network, stages, memory and time of a configuration, and writes nothing."""
    run = prepare(config)
    for number, stage in enumerate(config.stages, start=1):
        groups = apply_rules(run.model, _rules(run.model, stage))
        set_train_mode(run.model, stage.batch_norm == "adapt")
        log.info(f"stage {number}  {stage.name}: {stage.epochs} epochs, {stage.optimizer}, lr {stage.lr:g}")
        log.info(freeze_table(run.model, groups, stage.lr))
        needs = estimate(run.model, run.record.preprocessing.size, config.batch_size, run.runtime, stage.optimizer)
        passes = stage.epochs * (
            len(run.split["train"]) * needs.train_seconds + len(run.split["val"]) * needs.predict_seconds
        )
        log.info(f"  about {passes / 60:.1f} minutes and {needs.memory_bytes / 2**30:.1f} GiB, reading photos not counted")


def _run_stages(run: Run, progress: Progress, saved: Saved | None) -> None:
    """Trains the stages that are left, keeping the best weights by validation and the state to resume from."""
    config, best_weights = run.config, None
    last_save = time.monotonic()
    validation, _ = make_loader(_dataset(run, "val", "none"), config.batch_size, shuffle=False, **_loading(run))
    while progress.stage < len(config.stages):
        stage = config.stages[progress.stage]
        groups = apply_rules(run.model, _rules(run.model, stage))
        training = _training(run, stage, groups)
        if saved:
            restore_optimizer(training.optimizer, saved)
            training.scaler.load_state_dict(saved.scaler)
            restore_random(saved)
            saved = None
        photos = _dataset(run, "train", stage.augment)
        loader, order = make_loader(photos, config.batch_size, shuffle=True, **_loading(run))
        rate = functools.partial(
            learning_rate,
            steps=stage.epochs * len(order),
            lr=stage.lr,
            schedule=stage.schedule,
            warmup=round(stage.warmup_epochs * len(order)),
        )
        set_train_mode(run.model, stage.batch_norm == "adapt")
        log.info(f"stage {progress.stage + 1} of {len(config.stages)}: {stage.name}, {stage.optimizer}")
        log.info(freeze_table(run.model, groups, stage.lr))

        while progress.epoch < stage.epochs:
            started = time.monotonic() - progress.seconds
            set_train_mode(run.model, stage.batch_norm == "adapt")
            order.epoch = sum(s.epochs for s in config.stages[: progress.stage]) + progress.epoch
            order.skip = progress.step
            first_step = progress.epoch * len(order) + progress.step
            title = f"{stage.name} {progress.epoch + 1}/{stage.epochs}"
            with bar(title, len(photos), progress.sums.photos) as meter:
                for lr in train_epoch(training, loader, progress.sums, first_step, rate):
                    progress.step += 1
                    progress.seconds = time.monotonic() - started
                    meter.update(progress.sums.photos - meter.n)
                    meter.set_postfix_str(f"loss {progress.sums.mean_loss:.3f}, acc {progress.sums.accuracy:.3f}")
                    if time.monotonic() - last_save > 60 * config.checkpoint_minutes:
                        _save(run, progress, training, best_weights)
                        best_weights, last_save = None, time.monotonic()

            val = score(*predict_logits(run.model, validation, run.runtime))
            row = _history_row(progress, stage, val, lr, time.monotonic() - started)
            progress.history.append(row)
            log.info(_epoch_line(row, stage.epochs))
            if _is_better(row, progress.best):
                progress.best = row
                best_weights = {name: value.clone() for name, value in run.model.state_dict().items()}
            progress.epoch, progress.step, progress.seconds, progress.sums = progress.epoch + 1, 0, 0.0, Sums()
            if time.monotonic() - last_save > 10 or progress.epoch == stage.epochs:
                _save(run, progress, training, best_weights)
                best_weights, last_save = None, time.monotonic()
        progress.stage, progress.epoch = progress.stage + 1, 0


