"""`flowers-torch update RUN NEWDATA`: a trained model learns more photos or classes."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_data, set_allocator_of_run, train
from flowers_torch.errors import UsageError

EXAMPLES = """examples:
  flowers-torch update runs/garden-inception_v3-1 new_photos/         more photos of the classes it knows
  flowers-torch update runs/garden-inception_v3-1 orchids/            orchids/orchid/*.jpg: one class more
  flowers-torch update runs/garden-inception_v3-1 --resume runs/garden-inception_v3-2
"""
FLAGS = ("batch-size", "precision", "device", "workers", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of updating: those of training that make sense for it."""
    parser.description = (
        "Train a model further with new photos or classes, and compare it with what it was, on test photos "
        "that neither has seen."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("run", help="folder of the finished run")
    parser.add_argument("data", nargs="?", default="", help="new photos; the known ones may be among them")
    add_data(parser)
    parser.set_defaults(**{flag.replace("-", "_"): None for flag in train.FLAGS})
    train.add_options(parser, FLAGS)
    parser.add_argument("--out", default="", metavar="DIR", help="run folder [runs/<data>-<arch>-<n>]")
    parser.add_argument("--resume", metavar="NEW", help="go on with an interrupted update: its folder")


def run(args: argparse.Namespace) -> int:
    """Trains and compares."""
    if bool(args.data) == bool(args.resume):
        raise UsageError(
            "update takes new photos, or --resume with the folder of an update", "give one of them"
        )
    changes = train.overrides(args)
    if args.resume and changes:
        raise UsageError("--resume goes on with the options that the update began with", "give it alone")

    from flowers_torch.log import console
    from flowers_torch.runs import recipe
    from flowers_torch.runs.folder import find_run
    from flowers_torch.runs.update import compare_with_parent, update

    folder = find_run(args.run)
    begun = Path(args.resume).expanduser() if args.resume else folder
    with console(args.quiet):
        set_allocator_of_run(begun, changes)
        if args.resume:
            recipe.resume(begun, {"data": args.moved} if args.moved else None)
            compare_with_parent(folder, begun)
        else:
            update(folder, args.data, changes, args.command, args.moved, args.out)
    return 0
