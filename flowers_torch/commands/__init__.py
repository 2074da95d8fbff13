"""The commands of `flowers-torch`, one file each: `add_arguments(parser)` and `run(args)`."""

import argparse
from pathlib import Path
from typing import Any

from flowers_torch.config import Config
from flowers_torch.config_file import load_config


def set_allocator(config: Config) -> None:
    """Applies `accelerate` to the memory allocator of this process, before a command trains."""
    from flowers_torch.accelerate import Acceleration
    from flowers_torch.training.device import choose_runtime

    runtime = choose_runtime(config.device, config.precision, config.threads)
    Acceleration.parse(config.accelerate).set_allocator(runtime)


def set_allocator_of_run(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """The same for a run that a command continues; a folder without a run is refused later."""
    if (folder / "config.toml").is_file():
        set_allocator(load_config(file=str(folder / "config.toml"), overrides=changes))


def add_data(parser: argparse.ArgumentParser, flag: str = "--data") -> None:
    """Adds the flag that says where the photos of a run are now."""
    text = "where the run's photos are now, if they have moved"
    parser.add_argument(flag, dest="moved", default="", metavar="DATA", help=text)
