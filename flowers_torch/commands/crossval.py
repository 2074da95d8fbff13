"""`flowers-torch crossval`: the recipe once a fold, for an honest number from few photos."""

import argparse
import os
from pathlib import Path

from flowers_torch.commands import set_allocator, set_allocator_of_run, train
from flowers_torch.errors import UsageError

EXAMPLES = """examples:
  flowers-torch crossval --arch tf_efficientnet_lite0 --weights offline --data my_photos/
  flowers-torch crossval --data my_photos/ --folds 10 --repeats 3
  flowers-torch crossval --resume runs/my_photos-inception_v3-crossval-1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of training and two more."""
    train.add_arguments(parser)
    parser.description = "Train once a fold: every photo is tested by a network that never saw it."
    parser.epilog = EXAMPLES
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="parts of the photos (5)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="times to deal them anew (1)")


def run(args: argparse.Namespace) -> int:
    """Trains and tests all folds."""
    if args.origin or args.allow_data_change or args.allow_config_change or args.overwrite or args.dry_run:
        raise UsageError(
            "crossval knows no --from, --allow-data-change, --allow-config-change, --overwrite or --dry-run",
            "leave it out",
        )
    for flag, value, low, high in (("--folds", args.folds, 3, 100), ("--repeats", args.repeats, 1, 100)):
        if not low <= value <= high:
            raise UsageError(f"{flag} {value} is out of range", f"use {low} .. {high}")
    if args.cache:
        os.environ["FLOWERS_TORCH_CACHE"] = args.cache
    from flowers_torch.config_file import load_config

    changes = train.overrides(args)
    if args.resume and (changes or args.arch or args.config):
        raise UsageError(
            "--resume goes on with the folder's own configuration",
            "give --resume FOLDER, and --data where the photos have moved",
        )
    config = None if args.resume else load_config(args.arch, args.data, args.config, changes)

    from flowers_torch.log import console
    from flowers_torch.runs.crossval import cross_validate, resume

    with console(args.quiet):
        if config is None:
            folder = Path(args.resume).expanduser()
            set_allocator_of_run(folder)
            resume(folder, args.data)
            return 0
        set_allocator(config)
        cross_validate(config, args.folds, args.repeats, args.out, args.command)
    return 0
