"""`flowers-torch reproduce RECIPE`: a tutorial's figure beside ours, and what differs."""

import argparse
import os
from pathlib import Path

from flowers_torch.commands import train
from flowers_torch.errors import UsageError

RESULTS = Path("benchmarks/reproduction.jsonl")
EXAMPLES = """examples:
  flowers-torch reproduce                                        list the recipes and their figures
  flowers-torch reproduce happy_house --data train_happy.h5      run it and compare
  flowers-torch reproduce happy_house --data train_happy.h5 --defaults
  flowers-torch reproduce --run runs/train_happy-happy_model-1   compare a finished run
  flowers-torch reproduce --page docs/reproduction.md            write the page anew
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of training and some more."""
    train.add_arguments(parser)
    parser.usage = f"{parser.prog} [RECIPE] [--data DATA] [options]"
    parser.description = "Run a tutorial's recipe; print its figure, ours, and each thing that differs."
    parser.epilog = EXAMPLES
    parser.add_argument("recipe", nargs="?", default="", help="of configs/; none: list them")
    parser.add_argument("--run", metavar="RUN", help="read this finished run instead of training")
    parser.add_argument("--defaults", action="store_true", help="with our own defaults as its schedule")
    parser.add_argument(
        "--stand-in", action="store_true", help="the photos are others than the tutorial's; say so"
    )
    parser.add_argument("--record", action="store_true", help="add the result to --results")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=f"({RESULTS})")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of all results there")


def run(args: argparse.Namespace) -> int:
    """Trains or reads a run, compares, records; or lists; or writes the page."""
    if args.resume or args.origin or args.config or args.dry_run:
        raise UsageError(
            "reproduce knows no --resume, --from, --config or --dry-run", "use train, then --run FOLDER"
        )
    if args.page and (args.recipe or args.run):
        raise UsageError("--page shows the results recorded so far", "give it alone, or with --results")
    from flowers_torch.tutorials import TUTORIALS

    if args.page:
        return _write_page(args)
    if not args.recipe and not args.run:
        for name, tutorial in TUTORIALS.items():
            print(f"{name:30} {tutorial.title}: {tutorial.figure or 'no figure'}")
        return 0

    from flowers_torch.reproduction import (
        add_result,
        describe,
        find_tutorial,
        read_outcome,
        read_results,
        recipe_of,
    )

    if args.recipe:
        find_tutorial(args.recipe)
    folder = Path(args.run).expanduser() if args.run else _train(args)
    recipe = args.recipe or recipe_of(folder)
    outcome = read_outcome(folder, recipe, args.stand_in)
    print(describe(recipe, outcome, read_results(args.results)))
    if args.record:
        add_result(args.results, outcome)
    return 0


def _train(args: argparse.Namespace) -> Path:
    from flowers_torch.config import load_config

    if args.cache:
        os.environ["FLOWERS_TORCH_CACHE"] = args.cache
    config = load_config(args.arch, args.data, args.recipe, train.overrides(args))
    from flowers_torch import recipe
    from flowers_torch.reproduction import with_our_defaults
    from flowers_torch.training.monitors import console

    if args.defaults:
        config = with_our_defaults(config)
    with console(args.quiet):
        return recipe.train(config, overwrite=args.overwrite, argv=args.command).folder


def _write_page(args: argparse.Namespace) -> int:
    from flowers_torch.files import write_text
    from flowers_torch.reproduction import page, read_results

    outcomes = read_results(args.results)
    write_text(args.page, page(outcomes))
    print(f"{len(outcomes)} results in {args.page}")
    return 0
