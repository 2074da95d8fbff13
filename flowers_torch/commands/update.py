"""Train a model further with new photos or classes, and compare it with the model it started from.

Both are tested on photos that neither has seen.
"""

import argparse
import functools

from flowers_torch.commands import add_data, add_run, set_allocator_of_run, train
from flowers_torch.errors import UsageError

EXAMPLES = """examples:
  flowers-torch update runs/garden-inception_v3-1 new_photos/         more photos of the known classes
  flowers-torch update runs/garden-inception_v3-1 orchids/            orchids/orchid/*.jpg: a new class
  flowers-torch update runs/garden-inception_v3-1 --resume runs/garden-inception_v3-2
"""
FLAGS = (
    "classes",
    "groups",
    "exclude",
    "mirror",
    "batch-size",
    "precision",
    "accelerate",
    "device",
    "workers",
    "threads",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    text = "new photos; photos of the run among them are ignored"
    parser.add_argument("new", nargs="?", default="", metavar="NEW_DATA", help=text)
    add_data(parser)
    train.add_options(parser, FLAGS)
    parser.add_argument("--out", default="", metavar="DIR", help="run folder [runs/<data>-<arch>-<n>]")
    parser.add_argument("--resume", metavar="NEW_RUN", help="interrupted update to resume, or latest")


def run(args: argparse.Namespace) -> None:
    if bool(args.new) == bool(args.resume):
        raise UsageError("update needs new photos, or --resume", "give one of them")
    changes = train.overrides(args)
    if args.resume and changes:
        raise UsageError("--resume uses the options of the interrupted update", "leave out the other flags")

    from flowers_torch.log import console
    from flowers_torch.runs import recipe
    from flowers_torch.runs.experiment import Hooks
    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.runs.update import compare_with_parent, update

    folder = find_run_folder(args.run)
    with console(args.quiet):
        if not args.resume:
            here = {"device": "auto", "precision": "auto", "threads": 0}  # the run may be of another machine
            set_allocator_of_run(folder, here | changes)
            update(folder, args.new, changes, args.command, args.moved, args.out)
            return
        unfinished = find_run_folder(args.resume)
        set_allocator_of_run(unfinished)
        moved = {"data": args.moved} if args.moved else None
        hooks = Hooks(after_test=functools.partial(compare_with_parent, folder))
        recipe.resume(unfinished, moved, hooks=hooks)
