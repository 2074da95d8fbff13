"""What the numbers of a run depend on besides its images, and whether a run can be resumed exactly."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from flowers_torch.config import Config
from flowers_torch.errors import UsageError, printable
from flowers_torch.log import log
from flowers_torch.runs.folder import environment
from flowers_torch.training.device import Runtime

# Options that change no number of the result. The location of the images is one: their content is checked.
HARMLESS = frozenset(("data", "test", "workers", "checkpoint_minutes"))
RESOLVED = frozenset(("device", "threads", "stages"))  # compared as what they resolved to on the machine
# The checkpoint holds the network and the splits, whatever an option says.
FIXED = frozenset("arch weights size resize head_hidden dropout head_norm head mirror model_options split".split())


def fingerprint(config: Config, runtime: Runtime, processes: int = 1) -> dict[str, str]:
    """Everything that the numbers of a run depend on besides its images, as text by name."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in HARMLESS | RESOLVED}
    values["stages"] = [stage.name for stage in config.stages]
    for stage in config.stages:
        values |= {f"stages.{stage.name}.{name}": value for name, value in stage.settings().items()}
    entries = {name: json.dumps(value) for name, value in values.items()}
    here, on_cpu = environment(), runtime.device.type == "cpu"
    entries["device"] = "cpu" if on_cpu else f"{runtime.device.type} {here['gpu'] or ''}".strip()
    entries["threads"] = str(torch.get_num_threads()) if on_cpu else "any"
    entries["processes"] = str(processes)  # guard: T08
    return entries | {name: str(here[name]) for name in ("torch", "torchvision", "pillow")}


def check_exact(before: Mapping[str, str], now: Mapping[str, str], folder: Path, allow: bool) -> str:
    """The differences between the fingerprint of a checkpoint and the one now, in one line.

    `allow` accepts those that can be accepted. `folder` is the run, for the error's text.

    Raises:
        UsageError: there are differences that are not allowed. The log has a table of all of them.
    """
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if not names:
        return ""
    width = max(map(len, names))
    log.info(f"{'option':{width}}  saved -> now")
    for name in names:
        log.info(f"{name:{width}}  {printable(before.get(name), 60)} -> {printable(now.get(name), 60)}")
    line = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
    what = f"{printable(folder)} cannot be resumed exactly: {printable(line, 300)}"
    if fixed := [name for name in names if name in FIXED]:
        fix = f"leave {', '.join(fixed)} as it was, or start a new run with --from {printable(folder)}"
        raise UsageError(what, fix)
    if not allow:  # guard: R20
        raise UsageError(what, "resume with the same options, or add --allow-config-change")
    return line
