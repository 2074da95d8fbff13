"""The recipe: configuration -> data -> network -> stages -> evaluation -> files.

This file is the method as one would tell it; each step is a call into a part that also works alone.
"""

import dataclasses
import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, load_config, to_toml
from flowers_torch.data.loaders import make_loader
from flowers_torch.data.split_file import load_split, save_split
from flowers_torch.data.splits import Split
from flowers_torch.errors import DivergedError, ModelFileError, StoppedError, printable
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.plots import plot_curves
from flowers_torch.evaluation.summary import describe_scores, prediction_rows
from flowers_torch.files import safe_load, write_csv, write_json, write_text
from flowers_torch.models.classifier import build
from flowers_torch.prepare import (
    Run,
    admit_photos,
    fit_to_clock,
    loading,
    photo_dataset,
    prepare,
)
from flowers_torch.run_folder import new_run_folder, write_origin
from flowers_torch.stage import train_stage
from flowers_torch.training.checkpoint import (
    MODEL_FILE,
    RESUME_FILE,
    Progress,
    Saved,
    Saver,
    read_progress,
    restore_model,
)
from flowers_torch.training.engine import predict_logits
from flowers_torch.training.monitors import log, log_file
from flowers_torch.training.runtime import choose_runtime, deterministic
from flowers_torch.training.stopping import StopRequest, stop_request


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
    started = time.monotonic()
    run = prepare(config)
    run.split = split or run.split
    if config.minutes:
        fit_to_clock(run, started)
    run.folder = new_run_folder(config.out, run.photos.name, config.arch, overwrite)
    heading = f"{run.photos.name} with {config.arch}; repeat with: flowers-torch train --config config.toml"
    write_origin(run.folder, to_toml(run.config, heading), run.photos.classes, argv or [])
    save_split(run.split, run.photos, run.folder / "split.json", config.seed)
    if run.bad:
        rows = [json.dumps({"file": path, "error": reason}) for path, reason in run.bad.items()]
        write_text(run.folder / "bad_files.jsonl", "\n".join(rows) + "\n")
    with log_file(run.folder / "log.txt"):
        return _train_and_test(run, Progress(elapsed=time.monotonic() - started))


def resume(folder: Path, allow_data_change: bool = False) -> Result | None:
    """Goes on with an interrupted run from its newest saved state; None where it had finished already.

    Args:
        folder: The run folder.
        allow_data_change: Go on although photos are missing, edited or new, with those of the run's parts
            that are still there. The unfinished epoch starts anew and the history counts the change.

    Raises:
        ModelFileError: the folder holds no saved state.
        DataError: the photos are not those that the run began with.
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
    split, changes = load_split(folder / "split.json", photos)
    run = Run(config, runtime, photos, split, saved.record, runtime.place(model), folder)
    with log_file(folder / "log.txt"):
        progress = saved.progress
        if changes:
            log.info(f"the photos have changed since the run began:\n{changes.table()}")
            if not allow_data_change:
                changes.refuse(folder / "split.json", "restore them, or add --allow-data-change")
            progress.begin_epoch_on_other_photos(changes.counts())
            save_split(split, photos, folder / "split.json", config.seed)
        names = [*(stage.name for stage in config.stages), "test"]
        place = f"{names[progress.stage]}, epoch {progress.epoch + 1}, batch {progress.step + 1}"
        log.info(f"resumed  {printable(folder)}: {place}")
        return _train_and_test(run, progress, saved)


def _train_and_test(run: Run, progress: Progress, saved: Saved | None = None) -> Result:
    config = run.config
    validation, _ = make_loader(
        photo_dataset(run, "val", "none"), config.batch_size, shuffle=False, **loading(run)
    )
    saver = Saver(run.folder, progress, run.record, config.checkpoint_minutes)
    seconds = 60 * config.minutes - progress.elapsed - run.closing_seconds if config.minutes else math.inf
    with deterministic(config.deterministic), stop_request(seconds) as stop:
        while progress.stage < len(config.stages):
            train_stage(run, saver, validation, stop, saved)
            saved = None  # the stages behind begin afresh
        return _finish(run, progress, stop)


def _finish(run: Run, progress: Progress, stop: StopRequest) -> Result:
    """Tests the best weights once, on photos that decided nothing, and writes the results."""
    if not progress.best:
        raise DivergedError("the validation loss was never finite", "lower the learning rates of the stages")
    run.model.load_state_dict(safe_load(run.folder / MODEL_FILE)[0])
    loader, _ = make_loader(
        photo_dataset(run, "test", "none"), run.config.batch_size, shuffle=False, **loading(run)
    )

    def leave_if_asked(_: int) -> None:
        if stop.number:
            fix = f"go on with --resume {printable(run.folder)}"
            raise StoppedError(f"stopped by {stop.signal_name} before the test was over", fix, stop.number)

    logits, labels = predict_logits(run.model, loader, run.runtime, leave_if_asked)
    test = score(logits, labels)
    log.info(describe_scores(test, run.photos.classes))
    paths = [run.photos.paths[index] for index in run.split["test"]]
    write_csv(run.folder / "predictions.csv", prediction_rows(paths, logits, labels, run.photos.classes))
    write_csv(run.folder / "history.csv", progress.history)
    plot_curves(progress.history, run.folder / "figures" / "curves.png")
    write_json(
        run.folder / "metrics.json",
        {
            "best_epoch": progress.best,
            "test": test.to_dict(run.photos.classes),
            "data_changes": progress.data_changes,
        },
    )
    (run.folder / RESUME_FILE).unlink(missing_ok=True)  # only now is there nothing left to go on with
    size = (run.folder / MODEL_FILE).stat().st_size / 1e6
    log.info(f"model    {printable(run.folder / MODEL_FILE)}, {size:.1f} MB")
    log.info(f"next     flowers-torch predict {shlex.quote(printable(run.folder))} PHOTO...")
    return Result(run.folder, test, progress.history)
