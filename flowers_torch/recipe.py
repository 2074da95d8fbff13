"""The recipe: configuration -> data -> network -> stages -> evaluation -> files.

This file is the method as one would tell it; each step is a call into a part that also works alone.
"""

import dataclasses
import functools
import json
import shlex
import time
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, load_config, to_toml
from flowers_torch.data.loaders import make_loader
from flowers_torch.data.splits import Split, load_split, save_split
from flowers_torch.errors import DivergedError, ModelFileError, printable
from flowers_torch.evaluation.answers import Answers, collect
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.summary import describe_epoch
from flowers_torch.files import write_text
from flowers_torch.models.classifier import build
from flowers_torch.models.freeze import apply_rules, freeze_table, set_train_mode
from flowers_torch.prepare import (
    Run,
    admit_photos,
    balanced_weights,
    loading,
    photo_dataset,
    prepare,
    stage_rules,
)
from flowers_torch.results import write_results
from flowers_torch.run_folder import new_run_folder, write_origin
from flowers_torch.training.checkpoint import (
    MODEL_FILE,
    RESUME_FILE,
    Progress,
    Saved,
    Saver,
    read_progress,
    restore_model,
    restore_training,
)
from flowers_torch.training.engine import Training, train_epoch
from flowers_torch.training.monitors import bar, log, log_file
from flowers_torch.training.optim import learning_rate, make_optimizer
from flowers_torch.training.runtime import choose_runtime


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to."""

    folder: Path
    test: Scores
    history: list[dict[str, Any]]


def train(
    config: Config, overwrite: bool = False, argv: list[str] | None = None, split: Split | None = None
) -> Result:
    """Trains from the start and leaves a run folder behind.

    Args:
        config: The resolved configuration.
        overwrite: Allow `config.out` to hold an earlier run.
        argv: The command, for the record.
        split: Parts of the admitted photos, where the configuration's own are not wanted.
    """
    run = prepare(config)
    run.split = split or run.split
    run.folder = new_run_folder(config.out, run.photos.name, config.arch, overwrite)
    heading = f"{run.photos.name} with {config.arch}; repeat with: flowers-torch train --config config.toml"
    write_origin(run.folder, to_toml(run.config, heading), run.photos.classes, argv or [])
    save_split(run.split, run.photos, run.folder / "split.json", config.seed)
    if run.bad:
        rows = [json.dumps({"file": path, "error": reason}) for path, reason in run.bad.items()]
        write_text(run.folder / "bad_files.jsonl", "\n".join(rows) + "\n")
    with log_file(run.folder / "log.txt"):
        return _train_and_test(run, Progress())


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
    admission = admit_photos(config)
    photos = admission.photos
    saved = read_progress(folder / RESUME_FILE)
    model = build(saved.record)
    restore_model(model, saved)
    split = load_split(folder / "split.json", photos)
    run = Run(config, runtime, photos, split, saved.record, runtime.place(model), folder)
    with log_file(folder / "log.txt"):
        progress = saved.progress
        stage = config.stages[progress.stage].name
        log.info(
            f"resumed  {printable(folder)}: {stage}, epoch {progress.epoch + 1}, batch {progress.step + 1}"
        )
        return _train_and_test(run, progress, saved)


def _train_and_test(run: Run, progress: Progress, saved: Saved | None = None) -> Result:
    config = run.config
    validation, _ = make_loader(
        photo_dataset(run, "val", "none"), config.batch_size, shuffle=False, **loading(run)
    )
    saver = Saver(run.folder, progress, run.record, config.checkpoint_minutes)
    resumed_stage = progress.stage if saved else None
    best_answers = None  # to the validation photos, in the best epoch of this process
    for number in range(progress.stage, len(config.stages)):
        stage = config.stages[number]
        groups = apply_rules(run.model, stage_rules(run.model, stage))
        training = Training(
            run.model,
            make_optimizer(stage.optimizer, run.model, groups, stage.weight_decay, stage.momentum),
            run.runtime.scaler(),
            run.runtime,
            balanced_weights(run),
            config.label_smoothing,
            config.auxiliary_weight,
            config.clip_grad,
        )
        if saved and number == resumed_stage:
            restore_training(training, saved)
        photos = photo_dataset(run, "train", stage.augment)
        balanced = config.sampler == "balanced"
        loader, order = make_loader(
            photos, config.batch_size, shuffle=True, balanced=balanced, **loading(run)
        )
        rate = functools.partial(
            learning_rate,
            steps=stage.epochs * len(order),
            lr=stage.lr,
            schedule=stage.schedule,
            warmup=round(stage.warmup_epochs * len(order)),
        )
        set_train_mode(run.model, stage.batch_norm == "adapt")
        log.info(f"stage {number + 1}  {stage.name}: {stage.epochs} epochs, {stage.optimizer}")
        log.info(freeze_table(run.model, groups, stage.lr))

        while progress.epoch < stage.epochs:
            started = time.monotonic() - progress.seconds
            set_train_mode(run.model, stage.batch_norm == "adapt")
            order.epoch = sum(earlier.epochs for earlier in config.stages[:number]) + progress.epoch
            order.skip = progress.step
            first_step = progress.epoch * len(order) + progress.step
            title = f"{stage.name} {progress.epoch + 1}/{stage.epochs}"
            with bar(title, len(photos), progress.sums.photos) as meter:
                for _ in train_epoch(training, loader, progress.sums, first_step, rate):
                    progress.step += 1
                    progress.seconds = time.monotonic() - started
                    meter.update(progress.sums.photos - meter.n)
                    meter.set_postfix_str(
                        f"loss {progress.sums.mean_loss:.3f}, acc {progress.sums.accuracy:.3f}"
                    )
                    saver.save_if_due(training)
            answers = collect(run.model, validation, run.runtime)
            val = score(answers.logits, answers.labels)
            row = {
                "stage": stage.name,
                "epoch": progress.epoch + 1,
                "lr": rate(first_step),
                "train_loss": progress.sums.mean_loss,
                "train_accuracy": progress.sums.accuracy,
                "val_loss": val.loss,
                "val_accuracy": val.accuracy,
                "seconds": time.monotonic() - started,
                "images_per_second": progress.sums.photos / progress.seconds,
            }
            log.info(describe_epoch(row, stage.epochs))
            saver.end_epoch(row, run.model)
            if progress.best is row:
                best_answers = answers
            saver.save_if_due(training, force=progress.epoch == stage.epochs)
        progress.stage, progress.epoch = number + 1, 0
    return _finish(run, progress, best_answers)


def _finish(run: Run, progress: Progress, validation: Answers | None) -> Result:
    """Tests the best weights once, on photos that decided nothing, and writes the results."""
    if not progress.best:
        raise DivergedError("the validation loss was never finite", "lower the learning rates of the stages")
    test = write_results(run, progress.history, progress.best, validation)
    (run.folder / RESUME_FILE).unlink(missing_ok=True)  # only now is there nothing left to go on with
    size = (run.folder / MODEL_FILE).stat().st_size / 1e6
    log.info(f"model    {printable(run.folder / MODEL_FILE)}, {size:.1f} MB")
    log.info(f"next     flowers-torch predict {shlex.quote(printable(run.folder))} PHOTO...")
    return Result(run.folder, test, progress.history)
