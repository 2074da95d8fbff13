"""`flowers-torch compare RUN RUN ...`: which run is better, judged on the test photos that they share."""

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

from flowers_torch.errors import UsageError, printable

SHOWN = 10  # changed photos that are named on the console; --json names all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of comparison."""
    parser.description = (
        "Compare finished runs on the same photos: paired tests, what changed, time and size."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, two or more")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a row for each run and a verdict for each pair."""
    if len(args.runs) < 2:
        raise UsageError("compare needs two runs or more", "name another run folder")

    import dataclasses

    from flowers_torch.evaluation.comparison import common_images, compare, select
    from flowers_torch.evaluation.metrics import score
    from flowers_torch.evaluation.predictions import load_predictions
    from flowers_torch.report.run_summary import read_history

    folders = [Path(name).expanduser() for name in args.runs]
    runs = [load_predictions(folder) for folder in folders]
    shared = common_images(runs)
    table: list[dict[str, Any]] = []
    for folder, predictions in zip(folders, runs, strict=True):
        scores = score(*select(predictions, "test", shared))
        weights = folder / "model.safetensors"
        table.append(
            {
                "run": str(folder),
                "accuracy": scores.accuracy,
                "interval_95": list(scores.interval()),
                "loss": scores.loss,
                "training_seconds": sum(row.get("seconds", 0) for row in read_history(folder)),
                "megabytes": weights.stat().st_size / 1e6 if weights.is_file() else None,
            }
        )
    pairs = [(i, j, compare(runs[i], runs[j])) for i, j in combinations(range(len(runs)), 2)]
    if args.json:
        found = [
            {"first": str(folders[i]), "second": str(folders[j]), **dataclasses.asdict(c)}
            for i, j, c in pairs
        ]
        from flowers_torch.files.atomic import to_json

        print(to_json({"images": len(shared), "runs": table, "pairs": found}, indent=1))
        return 0
    own = [len(predictions.paths["test"]) for predictions in runs]
    print(f"{len(shared)} test photos in common (of {', '.join(map(str, own))})")
    width = max(len(printable(folder, 60)) for folder in folders)
    print(f"  {'run':{width}} accuracy 95% interval    loss   time       size")
    for row in table:
        low, high = row["interval_95"]
        size = "-" if row["megabytes"] is None else f"{row['megabytes']:.1f} MB"
        print(
            f"  {printable(row['run'], 60):{width}} {row['accuracy']:8.4f} {low:.3f} .. {high:.3f} "
            f"{row['loss']:7.4f} {row['training_seconds']:6.0f} s {size:>10}"
        )
    for i, j, result in pairs:
        low, high = result.interval
        gain = (result.second_correct - result.first_correct) / result.images
        print(
            f"{printable(folders[i], 60)} (first), {printable(folders[j], 60)} (second): {result.verdict()}"
        )
        print(f"  second - first {gain:+.4f} (95% bootstrap {low:+.4f} .. {high:+.4f})")
        for title, paths in (("first", result.only_first), ("second", result.only_second)):
            named = ", ".join(printable(path, 80) for path in paths[:SHOWN])
            more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
            print(f"  right only in the {title}: {len(paths)}{': ' if paths else ''}{named}{more}")
    return 0
