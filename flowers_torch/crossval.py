"""Cross-validation: the recipe once a fold, every photo tested by a network that never saw it."""

import csv
import dataclasses
import statistics
from pathlib import Path
from typing import Any

from flowers_torch import recipe
from flowers_torch.config import Config
from flowers_torch.data.folds import fold_photos
from flowers_torch.files import write_csv, write_json
from flowers_torch.prepare import admit_photos
from flowers_torch.run_folder import new_run_folder
from flowers_torch.training.monitors import log


def cross_validate(
    config: Config, folds: int = 5, repeats: int = 1, argv: list[str] | None = None
) -> dict[str, Any]:
    """Trains folds times repeats networks; writes `crossval.json` and out-of-fold `predictions.csv`.

    Args:
        config: Of each run; its `split` is not looked at. Repeat r has the seed `config.seed + r`.
        folds: At least 3: one to test, one to choose the best epoch, the others to train.
        repeats: Times to deal the folds anew.
        argv: The command, for the record.

    Returns:
        What `crossval.json` holds: mean, standard deviation and n of the test accuracies, and each run.
    """
    admission = admit_photos(config)
    seeds = [config.seed + repeat for repeat in range(repeats)]
    plans = {seed: fold_photos(admission.photos, folds, seed, admission.twins) for seed in seeds}
    out = new_run_folder(config.out, admission.photos.name, f"{config.arch}-crossval")
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed, splits in plans.items():
        for fold, split in enumerate(splits):
            folder = out / f"seed{seed}-fold{fold}"
            log.info(f"fold     {fold + 1} of {folds}, seed {seed}")
            own = dataclasses.replace(config, seed=seed, out=str(folder))
            result = recipe.train(own, argv=argv, split=split)
            runs.append({"seed": seed, "fold": fold, "folder": folder.name, **_counts(result)})
            rows += [{"seed": seed, "fold": fold, **row} for row in _predictions(folder)]
            write_csv(out / "predictions.csv", rows)  # after each fold: a stopped run leaves what it has
            write_json(out / "crossval.json", _summary(runs, folds))
    summary = _summary(runs, folds)
    log.info(
        f"folds    accuracy {summary['mean']:.4f} +- {summary['std']:.4f} (n = {summary['n']}); see {out}"
    )
    return summary


def _counts(result: recipe.Result) -> dict[str, Any]:
    return {
        "accuracy": result.test.accuracy,
        "correct": result.test.correct,
        "photos": result.test.photos,
    }


def _summary(runs: list[dict[str, Any]], folds: int) -> dict[str, Any]:
    accuracies = [run["accuracy"] for run in runs]
    return {
        "folds": folds,
        "n": len(runs),
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        "correct": sum(run["correct"] for run in runs),
        "photos": sum(run["photos"] for run in runs),
        "runs": runs,
    }


def _predictions(folder: Path) -> list[dict[str, Any]]:
    with (folder / "predictions.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
