"""Cross-validate: train once per fold, so that every photo is tested by a network that never saw it."""

import argparse
import contextlib

from flowers_torch.commands import add_json, print_json, set_allocator, set_allocator_of_run, train
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError

EXAMPLES = """examples:
  flowers-torch crossval --arch tf_efficientnet_lite0 --weights offline --data my_photos/
  flowers-torch crossval --data my_photos/ --folds 10 --repeats 3
  flowers-torch crossval --resume runs/my_photos-inception_v3-crossval-1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_config(parser)
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="number of folds [5]")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="times that folds are drawn [1]")
    text = "folder of the cross-validation [runs/<data>-<arch>-crossval-<n>]"
    parser.add_argument("--out", default="", metavar="DIR", help=text)
    parser.add_argument("--resume", metavar="RUN", help="interrupted cross-validation to resume, or latest")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    for flag, value, low, high in (("--folds", args.folds, 3, 100), ("--repeats", args.repeats, 1, 100)):
        if not low <= value <= high:
            raise UsageError(f"{flag} {value} is out of range", f"use {low} .. {high}")
    changes = train.overrides(args)
    if args.resume and (changes or args.arch or args.config):
        fix = "give --resume FOLDER, and --data if the photos have moved"
        raise UsageError("--resume uses the configuration of its folder", fix)
    config = None if args.resume else load_config(args.arch, args.data, args.config, changes)

    from flowers_torch.log import console
    from flowers_torch.runs.crossval import cross_validate, resume
    from flowers_torch.runs.folder import find_run_folder

    with contextlib.nullcontext() if args.json else console(args.quiet):
        if config is None:
            folder = find_run_folder(args.resume)
            set_allocator_of_run(folder)
            summary = resume(folder, args.data)
        else:
            set_allocator(config)
            summary = cross_validate(config, args.folds, args.repeats, args.out, args.command)
    if args.json:
        print_json(summary)
