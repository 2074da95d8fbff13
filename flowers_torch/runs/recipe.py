"""The recipe: configuration -> data -> network -> stages -> evaluation -> files.

This file is the method as one would tell it; each step is a call into a part that also works alone.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, to_toml
from flowers_torch.data.splits.split_file import save_split
from flowers_torch.data.splits.assign import Splits
from flowers_torch.data.loading.workers import worker_errors
from flowers_torch.errors import DivergedError, ModelFileError, StoppedError, printable
from flowers_torch.evaluation.metrics import Scores
from flowers_torch.files.tensors import safe_load
from flowers_torch.files.atomic import write_text
from flowers_torch.runs.cost import fit_to_clock
from flowers_torch.runs.experiment import (
    Run,
    part_batches,
    prepare_together,
)
from flowers_torch.runs.results import report, write_results
from flowers_torch.runs.resuming import reopen, run_facts
from flowers_torch.runs.folder import folder_of_launch, new_run_folder, run_lock, write_origin
from flowers_torch.shell import command_line, repeat_command
from flowers_torch.runs.stage import train_stage
from flowers_torch.training.checkpoint import (
    MODEL_FILE,
    RunState,
    Checkpoint,
    Checkpointer,
    checkpoint_files,
)
from flowers_torch.training.distributed import Distributed, distributed_context
from flowers_torch.log import RESULT, log, log_file
from flowers_torch.training.runtime import deterministic
from flowers_torch.training.stopping import StopRequest, stop_request


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to."""

    folder: Path
    test: Scores
    history: list[dict[str, Any]]


def train(
    config: Config, overwrite: bool = False, argv: list[str] | None = None, split: Splits | None = None
) -> Result:
    """Trains from the start and leaves a run folder behind.

    Args:
        config: The resolved configuration.
        overwrite: Allow `config.out` to hold an earlier run.
        argv: The command, for the record; None for the one that repeats the run from its configuration.
        split: Parts of the admitted photos, where the configuration's own are not wanted.
    """
    started = time.monotonic()
    with distributed_context(config.device) as world:
        begun = folder_of_launch(config.out) if world.restarts else None
        if begun := world.tell(begun):
            if checkpoint_files(begun):
                return _resume(begun, world)
            config, overwrite = dataclasses.replace(config, out=str(begun)), True
        run = prepare_together(config, world)
        run.split = split or run.split
        if config.minutes:
            if world.is_main:
                fit_to_clock(run, started)
            run.config, run.closing_seconds = world.tell((run.config, run.closing_seconds))
        if world.is_main:
            run.folder = new_run_folder(config.out, run.photos.name, config.arch, overwrite)
        run.folder = world.tell(run.folder)
        with _at_work(run.folder, world):
            if world.is_main:
                _write_origin(run, argv)
            spent = time.monotonic() - started
            return _train_and_test(run, RunState(elapsed=spent, closing_seconds=run.closing_seconds))


def resume(
    folder: Path,
    changes: dict[str, Any] | None = None,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
) -> Result | None:
    """Goes on with an interrupted run from its newest saved state; None where it had finished already.

    Args:
        folder: The run folder.
        changes: To its configuration, as `load_config` takes them.
        allow_config_change: Go on though the result will be another one than without the interruption.
        allow_data_change: Go on although photos are missing, edited or new, with those of the run's parts
            that are still there. The unfinished epoch starts anew and the history counts the change.

    Raises:
        ModelFileError: the folder holds no saved state.
        UsageError: it could not go on exactly, or another run is at work in the folder.
        DataError: the photos are not those that the run began with.
    """
    if not checkpoint_files(folder):
        if (folder / "metrics.json").is_file():  # guard: R21
            log.info(f"nothing to do: {printable(folder)} is finished")
            return None
        raise ModelFileError(f"{printable(folder)} holds no saved state", "start the run anew")
    with distributed_context((changes or {}).get("device", "auto")) as world:
        return _resume(folder, world, changes, allow_config_change, allow_data_change)


def _resume(folder: Path, world: Distributed, *changes: Any) -> Result:
    started = time.monotonic()
    with _at_work(folder, world):
        run, saved = reopen(folder, world, *changes)
        progress = saved.progress
        names = [*(stage.name for stage in run.config.stages), "test"]
        place = f"{names[progress.stage]}, epoch {progress.epoch + 1}, batch {progress.step + 1}"
        log.info(f"resumed  {printable(folder)}: {place}")
        progress.elapsed += time.monotonic() - started  # opening the run again takes of its time too
        return _train_and_test(run, progress, saved)


@contextlib.contextmanager
def _at_work(folder: Path, world: Distributed) -> Iterator[None]:
    """The run folder is this run's and its log is written, by the main process."""
    if not world.is_main:
        yield
        return
    with run_lock(folder), log_file(folder / "log.txt"):
        yield


def _write_origin(run: Run, argv: list[str] | None) -> None:
    repeat = repeat_command(run.folder)
    heading = f"{printable(run.photos.name)} with {run.config.arch}; repeat with: {repeat}"
    config = dataclasses.replace(run.config, out="")  # to repeat the run into a folder of its own
    command = command_line(*argv) if argv else repeat
    write_origin(run.folder, to_toml(config, heading), run.photos.classes, command)
    save_split(run.split, run.photos, run.folder / "split.json", run.config.seed)
    if run.bad:
        rows = [json.dumps({"file": path, "error": reason}) for path, reason in run.bad.items()]
        write_text(run.folder / "bad_files.jsonl", "\n".join(rows) + "\n")


def _train_and_test(run: Run, progress: RunState, saved: Checkpoint | None = None) -> Result:
    config, world = run.config, run.world
    facts = run_facts(config, run.runtime, world.size)
    world.check_same(facts | {"split": json.dumps(run.split), "photos": json.dumps(run.photos.paths)})
    validation = part_batches(run, "val")
    saver = Checkpointer(run.folder, progress, run.info, config.checkpoint_minutes, facts, world.is_main)
    left = 60 * config.minutes - progress.elapsed - progress.closing_seconds
    seconds = left if config.minutes else math.inf
    with (
        deterministic(config.deterministic),
        stop_request(seconds, patient=world.size > 1) as stop,
        worker_errors(),
    ):
        while progress.stage < len(config.stages):
            train_stage(run, saver, validation, stop, saved)
            saved = None  # the stages behind begin afresh
        return _finish(run, progress, stop)


def _finish(run: Run, progress: RunState, stop: StopRequest) -> Result:
    """Tests the best weights once, on photos that decided nothing, and writes the results."""
    if not progress.best:
        raise DivergedError("the validation loss was never finite", "lower the learning rates of the stages")
    if run.world.is_main:
        run.model.load_state_dict(safe_load(run.folder / MODEL_FILE)[0])
    run.world.copy_model(run.model)

    def leave_if_asked(_: int) -> None:
        stop.number = int(run.world.most(stop.number))
        if stop.number:
            fix = f"go on with {command_line('flowers-torch', 'train', '--resume', run.folder)}"
            raise StoppedError(f"stopped by {stop.signal_name} before the test was over", fix, stop.number)

    test = write_results(run, progress.history, progress.best, progress.changes, leave_if_asked)
    if not run.world.is_main:
        return Result(run.folder, test, progress.history)
    for path in reversed(checkpoint_files(run.folder)):  # only now is there nothing left to go on with
        path.unlink()
    size = (run.folder / MODEL_FILE).stat().st_size / 1e6
    log.info(f"model    {printable(run.folder / MODEL_FILE)}, {size:.1f} MB")
    log.log(RESULT, f"report   {printable(report(run))}")
    log.info(f"next     {command_line('flowers-torch', 'predict', run.folder, 'PHOTO...')}")
    return Result(run.folder, test, progress.history)
