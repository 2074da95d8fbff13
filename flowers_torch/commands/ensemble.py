"""Average the predictions of several runs, and the weights if their networks are alike (a model soup).

The validation photos choose; the test result of each is shown.
"""

import argparse
from pathlib import Path

from flowers_torch.commands import RUN_HELP, add_data, add_device, add_json, print_json, warn
from flowers_torch.errors import UsageError, plural, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"two or more: {RUN_HELP}; or one cross-validation")
    add_data(parser)
    parser.add_argument("--evaluate-on", dest="other", metavar="DATA", help="other labeled photos to evaluate on")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the best averaged weights")
    text = "average the predictions only, which takes no time"
    parser.add_argument("--no-weights", action="store_true", help=text)
    add_json(parser)
    add_device(parser, batch_size=False)


def run(args: argparse.Namespace) -> None:
    if args.out and (args.no_weights or args.other):
        what = "--out needs averaged weights, which are chosen on validation photos"
        raise UsageError(what, "leave out --no-weights and --evaluate-on")
    if args.moved and args.other:
        raise UsageError("--data applies only to the photos of the runs", "leave out one of the two")

    from flowers_torch.runs import ensemble
    from flowers_torch.runs.folder import find_run_folder

    folders = [folder for name in args.runs for folder in ensemble.run_folders(find_run_folder(name))]
    if len(folders) < 2:
        raise UsageError("ensemble needs two runs or more", "name another run")
    if args.other:
        _evaluate(folders, args)
        return
    found = ensemble.score_ensembles(folders, not args.no_weights, args.device, args.moved)
    chosen = ensemble.save_averaged(found, folders, args.out) if args.out else None
    if args.json:
        rows = [ensemble.candidate_dict(candidate) for candidate in found.candidates]
        print_json({"val": len(found.labels), "test": found.test, "best": found.best.name, "candidates": rows})
        return
    print(f"{len(found.labels)} validation and {plural(found.test, 'test photo')} in common")
    width = max(len(printable(one.name, 70)) for one in found.candidates)
    print(f"  {'':{width}}  val loss      acc  test loss      acc")
    for one in found.candidates:
        val, test = (f"{scores.loss:8.4f} {scores.accuracy:8.4f}" for scores in (one.val, one.test))
        print(f"{'*' if one is found.best else ' '} {printable(one.name, 70):{width}}  {val}   {test}")
    different = "; the networks differ, so their weights are not averaged"
    print(f"* best on validation{'' if found.alike else different}")
    if found.choice:
        print(f"note     from the best single run to it, {found.choice}")
    if chosen:
        print(f"model    {printable(args.out)}: {chosen.name}")


def _evaluate(folders: list[Path], args: argparse.Namespace) -> None:
    from flowers_torch.runs.ensemble import evaluate_ensembles

    scores, known = evaluate_ensembles(folders, args.other, not args.no_weights, args.device)
    photos = next(iter(scores.values())).images
    if known:
        warn(f"{known} of the {plural(photos, 'photo')} trained a run or chose its weights, so the result is too good")
    if args.json:
        rows = [
            {"name": name, "accuracy": one.accuracy, "interval_95": list(one.interval()), "loss": one.loss}
            for name, one in scores.items()
        ]
        print_json({"images": photos, "known": known, "candidates": rows})
        return
    width = max(len(printable(name, 70)) for name in scores)
    print(f"{plural(photos, 'photo')}\n{'':{width}}    loss      acc   95% interval")
    for name, one in scores.items():
        low, high = one.interval()
        print(f"{printable(name, 70):{width}}  {one.loss:6.4f}   {one.accuracy:.4f}   {low:.3f} .. {high:.3f}")
