"""Compare finished runs on the test photos that they share: paired tests, differences, time, size."""

import argparse

from flowers_torch.commands import RUN_HELP, add_json, print_json
from flowers_torch.errors import plural, printable

SHOWN = 10  # photos that are printed; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"two or more: {RUN_HELP}")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from flowers_torch.runs.compare import compare_runs
    from flowers_torch.runs.folder import find_run_folder

    found = compare_runs([find_run_folder(name) for name in args.runs])
    runs = found.runs
    if args.json:
        pairs = [{"first": runs[i].run, "second": runs[j].run, **vars(pair)} for i, j, pair in found.pairs]
        print_json(
            {"images": found.images, "relabeled": found.relabeled, "runs": [vars(row) for row in runs], "pairs": pairs}
        )
        return
    names = [printable(row.run, 60) for row in runs]
    print(f"{plural(found.images, 'test photo')} in common (of {', '.join(str(row.own_images) for row in runs)})")
    if found.relabeled:
        print(f"note     the runs label {found.relabeled} more differently; these do not count")
    if len(found.pairs) > 1:
        count, chance = len(found.pairs), 1 - 0.95 ** len(found.pairs)
        print(f"note     {count} pairs: even if all runs were equal, one would differ in up to {chance:.0%} of cases")
    width = max(map(len, names))
    print(f"  {'run':{width}} accuracy 95% interval    loss   time       size")
    for name, row in zip(names, runs, strict=True):
        accuracy = f"{row.accuracy:8.4f} {row.interval_95[0]:.3f} .. {row.interval_95[1]:.3f}"
        size = "-" if row.megabytes is None else f"{row.megabytes:.1f} MB"
        print(f"  {name:{width}} {accuracy} {row.loss:7.4f} {row.training_seconds:6.0f} s {size:>10}")
    for i, j, pair in found.pairs:
        low, high = pair.interval
        gain = (pair.second_correct - pair.first_correct) / pair.images
        print(f"{names[i]} (first), {names[j]} (second): {pair.verdict()}")
        print(f"  second - first {gain:+.4f} (95% bootstrap {low:+.4f} .. {high:+.4f})")
        for title, paths in (("first", pair.only_first), ("second", pair.only_second)):
            named = ", ".join(printable(path, 80) for path in paths[:SHOWN])
            more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
            print(f"  correct only in the {title}: {len(paths)}{': ' if paths else ''}{named}{more}")
