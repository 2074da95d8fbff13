"""Run the recipe of a tutorial; print its figure, ours, and the differences."""

import argparse
from pathlib import Path

from flowers_torch.commands import set_allocator, train
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
    parser.usage = f"{parser.prog} [RECIPE] [--data DATA] [options]"
    text = "recipe of a tutorial; without one, list them"
    parser.add_argument("recipe", nargs="?", default="", metavar="RECIPE", help=text)
    train.add_config(parser)
    parser.add_argument("--out", default="", metavar="DIR", help="run folder [runs/<data>-<arch>-<n>]")
    parser.add_argument("--overwrite", action="store_true", help="let --out replace an earlier run")
    parser.add_argument("--run", metavar="RUN", help="finished run to read instead of training")
    parser.add_argument("--defaults", action="store_true", help="use this package's default schedule")
    parser.add_argument("--substitute-data", action="store_true", help="mark the photos as not the tutorial's")
    parser.add_argument("--record", action="store_true", help="add the result to --results")
    text = f"file of the recorded results [{RESULTS}]"
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=text)
    parser.add_argument("--page", type=Path, metavar="FILE", help="file for the page of all results")


def run(args: argparse.Namespace) -> None:
    if args.config:
        raise UsageError("reproduce does not take --config", "name the recipe, or use train, then --run RUN")
    if args.page and (args.recipe or args.run):
        raise UsageError("--page only writes the recorded results", "leave out the recipe and --run")

    from flowers_torch.files.atomic import write_text
    from flowers_torch.log import console
    from flowers_torch.runs import recipe as recipes
    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.tutorials import reproduce
    from flowers_torch.tutorials.catalog import read_catalog
    from flowers_torch.tutorials.page import reproduction_page

    if args.page:
        results = reproduce.read_results(args.results)
        write_text(args.page, reproduction_page(results))
        print(f"{len(results)} results in {args.page}")
        return
    catalog = read_catalog()
    if not args.recipe and not args.run:
        for name, tutorial in catalog.recipes.items():
            print(f"{name:30} {tutorial.title}: {tutorial.figure or 'no figure'}")
        return
    if args.recipe:
        catalog.find(args.recipe)
    if args.run:
        folder = find_run_folder(args.run)
    else:
        config = load_config(args.arch, args.data, args.recipe, train.overrides(args))
        config = reproduce.with_our_defaults(config) if args.defaults else config
        with console(args.quiet):
            set_allocator(config)
            folder = recipes.train(config, args.out, args.overwrite, args.command).folder
    recipe = args.recipe or reproduce.recipe_of(folder)
    result = reproduce.read_reproduction(folder, recipe, args.substitute_data)
    print(reproduce.describe(recipe, result, reproduce.read_results(args.results)))
    if args.record:
        reproduce.add_result(args.results, result)
