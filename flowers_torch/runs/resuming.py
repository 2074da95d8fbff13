"""Reopening a run: whether it can go on exactly, and everything as it was."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowers_torch.config import Config, load_config, to_toml, with_absolute_paths
from flowers_torch.data.splits.split_file import load_split, save_split
from flowers_torch.errors import UsageError, printable
from flowers_torch.files.tensors import safe_load
from flowers_torch.files.atomic import write_text
from flowers_torch.models.checkpoint import build
from flowers_torch.runs.experiment import Run, open_filtered, photos_of
from flowers_torch.runs.folder import environment
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import MODEL_FILE, Checkpoint, read_newest_checkpoint, restore_model
from flowers_torch.training.distributed import Distributed
from flowers_torch.log import log
from flowers_torch.training.runtime import Runtime, choose_runtime, keep_freed_memory

# Options that change no number of the result. Where the photos lie is one: that they are the same is checked.
HARMLESS = frozenset(("out", "data", "workers", "checkpoint_minutes", "tensorboard"))
# Compared as what they came to on the machine instead.
RESOLVED = frozenset(("device", "threads", "stages"))
# The network and the parts of the split are those of the state, whatever an option says.
BUILT_IN = frozenset(
    (
        "arch",
        "weights",
        "size",
        "resize",
        "head_hidden",
        "dropout",
        "head_norm",
        "head",
        "model_options",
        "split",
    )
)


def reopen(
    folder: Path,
    world: Distributed,
    changes: dict[str, Any] | None = None,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
) -> tuple[Run, Checkpoint]:
    """A run with its newest state that is whole, the network filled from it; arguments as `recipe.resume`."""
    with world.main_first():
        config = with_absolute_paths(load_config(file=str(folder / "config.toml"), overrides=changes))
        moved = config.data != load_config(file=str(folder / "config.toml")).data
        saved = read_newest_checkpoint(folder)
        if saved.progress.best:
            safe_load(folder / MODEL_FILE)  # were it damaged, all that is still to come would be in vain
        device = world.device(config.device)
        runtime = choose_runtime(device, config.precision, config.channels_last, config.threads)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        facts = run_facts(config, runtime, world.size)
        change = check_exact(saved.facts, facts, folder, allow_config_change)
        with photos_of(folder, config):
            photos = open_filtered(config).photos
        split, data_change = load_split(folder / "split.json", photos)
        if data_change:
            log.info(f"the photos have changed since the run began:\n{data_change.table()}")
            if not allow_data_change:  # guard: D31 resume
                data_change.refuse(folder / "split.json", "restore them, or add --allow-data-change")
            saved.progress.restart_epoch(data_change.counts())
        if change:
            saved.progress.restart_epoch({"options": change})
        model = build(saved.info)
        restore_model(model, saved)
    world.wait()  # what is written now has been read by all
    if world.is_main and (change or moved):
        change = change or f"the photos are at {printable(config.data, 1000)} now"
        write_text(folder / "config.toml", to_toml(config, f"changed on the way: {change}"))
    if world.is_main and data_change:
        save_split(split, photos, folder / "split.json", config.seed)
    return Run(config, runtime, photos, split, saved.info, runtime.place(model), folder, world=world), saved


def run_facts(config: Config, runtime: Runtime, processes: int = 1) -> dict[str, str]:
    """All that the numbers of a run depend on besides its photos, as text by name."""
    values = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in HARMLESS | RESOLVED
    }
    values["stages"] = [stage.name for stage in config.stages]
    for stage in config.stages:
        values |= {f"stages.{stage.name}.{name}": value for name, value in stage.settings().items()}
    facts = {name: json.dumps(value) for name, value in values.items()}
    here = environment()
    on_cpu = runtime.device.type == "cpu"
    facts["device"] = "cpu" if on_cpu else f"{runtime.device.type} {here['gpu'] or ''}".strip()
    facts["threads"] = str(torch.get_num_threads()) if on_cpu else "any"
    facts["processes"] = str(processes)  # guard: T08
    return facts | {name: str(here[name]) for name in ("torch", "torchvision", "pillow")}


def check_exact(before: Mapping[str, str], now: Mapping[str, str], folder: Path, allow: bool) -> str:
    """Refuses to go on where that could not be exact.

    Args:
        before: Facts of the saved state.
        now: Facts of the run that is to go on.
        folder: The run folder, for the error's text.
        allow: Go on with what may be changed.

    Returns:
        The differences in one line, empty where there are none.

    Raises:
        UsageError: there are differences that are not allowed; the table of all is in the log.
    """
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if not names:
        return ""
    width = max(len(name) for name in names)
    log.info(f"{'what':{width}}  saved with -> now")
    for name in names:
        log.info(f"{name:{width}}  {printable(before.get(name), 60)} -> {printable(now.get(name), 60)}")
    line = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
    what = f"{printable(folder)} cannot go on exactly: {printable(line, 300)}"
    if fixed := [name for name in names if name in BUILT_IN]:
        raise UsageError(
            what, f"leave {', '.join(fixed)} as it was, or begin anew with {command_line('--from', folder)}"
        )
    if not allow:  # guard: R20
        raise UsageError(what, "go on as before, or allow the change with --allow-config-change")
    return line
