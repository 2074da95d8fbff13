"""Run the recipe of a tutorial; print its figure, ours, and the differences."""

import argparse
from pathlib import Path

from flowers_torch.commands import set_allocator, set_cache, train
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError

RESULTS = Path("benchmarks/reproduction.jsonl")
EXAMPLES = """examples:
  flowers-torch reproduce                                        list the recipes and their figures
  flowers-torch reproduce happy_house --data train_happy.h5      run a recipe and compare
  flowers-torch reproduce happy_house --data train_happy.h5 --defaults
  flowers-torch reproduce --run runs/train_happy-happy_model-1   compare a finished run
  flowers-torch reproduce --page docs/reproduction.md            write the page
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a configuration and those of the comparison."""
    parser.usage = f"{parser.prog} [RECIPE] [--data DATA] [options]"
    parser.epilog = EXAMPLES
    text = "recipe of a tutorial; without one, list them"
    parser.add_argument("recipe", nargs="?", default="", metavar="RECIPE", help=text)
    train.add_config(parser)
    parser.add_argument("--out", default="", metavar="DIR", help="run folder [runs/<data>-<arch>-<n>]")
    parser.add_argument("--overwrite", action="store_true", help="let --out replace an earlier run")
    parser.add_argument("--run", metavar="RUN", help="finished run to read instead of training")
    parser.add_argument("--defaults", action="store_true", help="use this package's default schedule")
    text = "mark the photos as not the tutorial's"
    parser.add_argument("--substitute-data", action="store_true", help=text)
    parser.add_argument("--record", action="store_true", help="add the result to --results")
    text = f"file of the recorded results [{RESULTS}]"
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=text)
    parser.add_argument("--page", type=Path, metavar="FILE", help="file for the page of all results")


def run(args: argparse.Namespace) -> int:
    """Lists the recipes, writes the page, or compares a run and records it."""
    if args.config:
        raise UsageError("reproduce does not take --config", "name the recipe, or use train, then --run RUN")
    if args.page and (args.recipe or args.run):
        raise UsageError("--page only writes the recorded results", "leave out the recipe and --run")

    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.tutorials import reproduce
    from flowers_torch.tutorials.catalog import read_catalog

    if args.page:
        return _write_page(args)
    catalog = read_catalog()
    if not args.recipe and not args.run:
        for name, tutorial in catalog.recipes.items():
            print(f"{name:30} {tutorial.title}: {tutorial.figure or 'no figure'}")
        return 0
    if args.recipe:
        catalog.find(args.recipe)
    folder = find_run_folder(args.run) if args.run else _train(args)
    recipe = args.recipe or reproduce.recipe_of(folder)
    result = reproduce.read_reproduction(folder, recipe, args.substitute_data)
    print(reproduce.describe(recipe, result, reproduce.read_results(args.results)))
    if args.record:
        reproduce.add_result(args.results, result)
    return 0


def _train(args: argparse.Namespace) -> Path:
    set_cache(args.cache)
    config = load_config(args.arch, args.data, args.recipe, train.overrides(args))
    from flowers_torch.log import console
    from flowers_torch.runs import recipe
    from flowers_torch.tutorials.reproduce import with_our_defaults

    if args.defaults:
        config = with_our_defaults(config)
    with console(args.quiet):
        set_allocator(config)
        return recipe.train(config, args.out, args.overwrite, args.command).folder


def _write_page(args: argparse.Namespace) -> int:
    from flowers_torch.files.atomic import write_text
    from flowers_torch.tutorials.page import reproduction_page
    from flowers_torch.tutorials.reproduce import read_results

    results = read_results(args.results)
    write_text(args.page, reproduction_page(results))
    print(f"{len(results)} results in {args.page}")
    return 0
