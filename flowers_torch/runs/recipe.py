"""The recipe, from top to bottom: configuration -> images -> network -> stages -> test -> files."""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from logging import LogRecord
from pathlib import Path
from typing import Any

from torch import nn

from flowers_torch.config import Config
from flowers_torch.config_file import load_config
from flowers_torch.data.loading.workers import worker_errors
from flowers_torch.data.splits.assign import Splits
from flowers_torch.errors import DivergedError, ModelFileError, printable
from flowers_torch.evaluation.metrics import Scores
from flowers_torch.files.atomic import open_own
from flowers_torch.files.tensors import safe_load
from flowers_torch.log import RESULT, collected, log, log_file
from flowers_torch.models.checkpoint import load_matching
from flowers_torch.report.attempt import Attempt
from flowers_torch.runs.cost import fit_to_time
from flowers_torch.runs.experiment import NO_HOOKS, Experiment, Hooks
from flowers_torch.runs.fingerprint import fingerprint
from flowers_torch.runs.folder import folder_of_launch, new_run_folder, run_lock
from flowers_torch.runs.linear_probe import fit_head
from flowers_torch.runs.results import write_provenance, write_results, write_run_report
from flowers_torch.runs.stage import READ_INTERVAL, raise_if_stopped, train_stage
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import MODEL_FILE, Checkpoint, Checkpointer, RunState, checkpoint_files
from flowers_torch.training.device import deterministic
from flowers_torch.training.distributed import Distributed, distributed_context
from flowers_torch.training.stopping import StopRequest, stop_request


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its folder, its test scores, and a row for each epoch."""

    folder: Path
    test: Scores
    history: list[dict[str, Any]]


def train(
    config: Config,
    out: str | Path = "",
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    splits: Splits | None = None,
    hooks: Hooks = NO_HOOKS,
) -> Result:
    """Trains a network and leaves a run folder.

    Args:
        out: The run folder; empty for the next free `runs/<data>-<arch>-<n>`.
        overwrite: Let `out` hold an earlier run.
        command: The command line, for the log; None stores the command that repeats the run.
        splits: Of the filtered images, in place of the configuration's own.
        hooks: Called after each epoch, where `StopTraining` ends training, and after the test.
    """
    started = time.monotonic()
    # The first call of cuBLAS, when the network is tried, decides whether it can be deterministic.
    with collected() as early, distributed_context(config.device) as distributed, deterministic(config.deterministic):
        # torchrun restarts all processes when one dies. They resume in the folder of the first start.
        existing = distributed.broadcast(folder_of_launch(str(out)) if distributed.restarts else None)
        if existing and checkpoint_files(existing):
            return _resume(existing, distributed, hooks)
        out, overwrite = existing or out, overwrite or bool(existing)

        experiment, model = Experiment.new(config, distributed, splits)
        closing_seconds = 0.0
        if config.minutes:
            experiment, closing_seconds = fit_to_time(experiment, model, started)
        name = (str(out), experiment.dataset.name, config.arch)
        folder = distributed.broadcast(new_run_folder(*name, overwrite) if distributed.is_main else Path())
        experiment = dataclasses.replace(experiment, folder=folder, hooks=hooks)
        with _run_folder(experiment.folder, distributed, early):
            experiment.distributed.lead(lambda: write_provenance(experiment, command))
            state = RunState(elapsed=time.monotonic() - started, closing_seconds=closing_seconds)
            return _train_and_test(experiment, model, state)


def resume(
    folder: Path,
    changes: dict[str, Any] | None = None,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
    hooks: Hooks = NO_HOOKS,
) -> Result | None:
    """Resumes an interrupted run from its newest checkpoint; None if it had finished already.

    What is allowed to change starts the unfinished epoch again, and the history counts it.

    Args:
        changes: To its configuration, as `load_config` takes them.
        allow_config_change: Resume although the result will differ from that of an uninterrupted run.
        allow_data_change: Resume although images are missing, edited or new, with those that are still there.

    Raises:
        ModelFileError: the folder holds no checkpoint.
        UsageError: the run cannot be resumed exactly, or another process works in the folder.
        DataError: the images have changed.
    """
    if not checkpoint_files(folder):
        if (folder / "metrics.json").is_file():  # guard: R21
            log.info(f"nothing to do: {printable(folder)} is finished")
            return None
        raise ModelFileError(f"{printable(folder)} holds no checkpoint", "start a new run")
    config = load_config(file=str(folder / "config.toml"), overrides=changes)
    with distributed_context(config.device) as distributed:
        return _resume(folder, distributed, hooks, changes, allow_config_change, allow_data_change)


def _resume(folder: Path, distributed: Distributed, hooks: Hooks, *changes: Any) -> Result:
    started = time.monotonic()
    with _run_folder(folder, distributed):
        experiment, model, checkpoint = Experiment.resume(folder, distributed, *changes)
        experiment = dataclasses.replace(experiment, hooks=hooks)
        state = checkpoint.state
        names = [*(stage.name for stage in experiment.config.stages), "test"]
        where = f"{names[state.stage]}, epoch {state.epoch + 1}, batch {state.step + 1}"
        log.info(f"resumed  {printable(folder)}: {where}")
        state.elapsed += time.monotonic() - started
        with deterministic(experiment.config.deterministic):
            return _train_and_test(experiment, model, state, checkpoint)


@contextlib.contextmanager
def _run_folder(folder: Path, distributed: Distributed, early: Sequence[LogRecord] = ()) -> Iterator[None]:
    """Locks the run folder and writes its log, and what was logged `early`, in the main process."""
    if not distributed.is_main:
        yield
        return
    with run_lock(folder), log_file(folder / "log.txt", open_own, early):  # guard: S6 log
        yield


def _train_and_test(
    experiment: Experiment, model: nn.Module, state: RunState, checkpoint: Checkpoint | None = None
) -> Result:
    config, distributed = experiment.config, experiment.distributed
    values = fingerprint(config, experiment.runtime, distributed.size)
    photos = {"photos": _digest(experiment.dataset.paths), "splits": _digest(experiment.splits)}
    distributed.check_equal(values | photos)
    writing = (config.checkpoint_minutes, values, distributed.is_main)
    checkpointer = Checkpointer(experiment.folder, state, experiment.info, *writing)
    left = 60 * config.minutes - state.elapsed - state.closing_seconds
    interval = READ_INTERVAL.get(experiment.runtime.device.type, 1)
    with (
        stop_request(left if config.minutes else math.inf, distributed.size > 1, interval) as stop,
        worker_errors(),
    ):
        while state.stage < len(config.stages):
            if config.stages[state.stage].is_fitted:
                experiment = fit_head(experiment, model, checkpointer, stop)
            else:
                train_stage(experiment, model, checkpointer, stop, checkpoint)
            checkpoint = None
        return _test(experiment, model, state, stop)


def _digest(value: Any) -> str:
    """A short text for what may be as large as the names of all photos, and is sent to every process."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _test(experiment: Experiment, model: nn.Module, state: RunState, stop: StopRequest) -> Result:
    """Tests the best weights once, on images that decided nothing, and writes the results."""
    folder, distributed = experiment.folder, experiment.distributed
    if not state.best:
        raise DivergedError("the validation loss was never finite", "lower the learning rates of the stages")
    if distributed.is_main:
        load_matching(model, safe_load(folder / MODEL_FILE)[0], folder / MODEL_FILE)
    distributed.broadcast_tensors(model.state_dict().values())

    def check(_: int) -> None:
        if stop.agreed(distributed):
            raise_if_stopped(experiment, stop, " before the test was over")

    scores, info = write_results(experiment, model, state, check)
    if distributed.is_main:
        if experiment.hooks.after_test:
            experiment.hooks.after_test(folder)
        for path in reversed(checkpoint_files(folder)):  # only now is there nothing left to resume
            path.unlink()
        log.info(f"model    {printable(folder / MODEL_FILE)}, {(folder / MODEL_FILE).stat().st_size / 1e6:.1f} MB")
        if page := Attempt()("the page", lambda: write_run_report(experiment, model, info), None):
            log.log(RESULT, f"report   {printable(page)}")
        log.info(f"next     {command_line('flowers-torch', 'predict', folder)} PHOTO...")
    return Result(folder, scores, state.history)
