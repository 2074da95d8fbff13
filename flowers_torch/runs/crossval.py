"""Cross-validation: the recipe once a fold, every photo tested by a network that never saw it."""

import csv
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from flowers_torch.runs import recipe
from flowers_torch.config import Config, with_absolute_paths
from flowers_torch.config_file import load_config, to_toml
from flowers_torch.data.quality.filter import FilteredDataset
from flowers_torch.data.splits.kfold import make_folds
from flowers_torch.data.splits.split_file import load_split
from flowers_torch.data.splits.assign import Splits
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.files.atomic import write_csv, write_json, write_text
from flowers_torch.runs.experiment import open_filtered, photos_of
from flowers_torch.runs.folder import new_run_folder
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import checkpoint_files
from flowers_torch.log import log

SUMMARY_FILE = "crossval.json"


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
    config = with_absolute_paths(config)
    admission = open_filtered(config)
    make_folds(admission.photos, folds, config.seed, admission.duplicates)  # its errors come before any folder
    out = new_run_folder(config.out, admission.photos.name, f"{config.arch}-crossval")
    resume_it = command_line("flowers-torch", "crossval", "--resume", out.absolute())
    heading = f"{folds} folds, {repeats} repeats; go on with: {resume_it}"
    write_text(out / "config.toml", to_toml(dataclasses.replace(config, out=""), heading))
    write_json(out / SUMMARY_FILE, _summary([], folds, repeats))
    return _train_folds(config, admission, out, folds, repeats, argv)


def resume(out: Path, data: str = "") -> dict[str, Any]:
    """Goes on with an interrupted cross-validation: finished folds are kept, the one begun is resumed.

    Args:
        out: The folder of the cross-validation.
        data: The place of its photos now; empty where they have not moved.

    Raises:
        UsageError: the folder is none.
        DataError: the photos are not those that it began with.
    """
    try:
        plan = json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))
        folds, repeats = int(plan["folds"]), int(plan["repeats"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{printable(out)} holds no cross-validation"
        raise UsageError(what, f"name a folder with {SUMMARY_FILE} in it") from error
    config = with_absolute_paths(load_config(data=data, file=str(out / "config.toml")))
    with photos_of(out, config):
        admission = open_filtered(config)
    return _train_folds(config, admission, out, folds, repeats, None)


def _train_folds(
    config: Config, admission: FilteredDataset, out: Path, folds: int, repeats: int, argv: list[str] | None
) -> dict[str, Any]:
    counts_of_folds = ["--folds", str(folds), "--repeats", str(repeats)]
    again = ["flowers-torch", "crossval", "--config", str((out / "config.toml").absolute()), *counts_of_folds]
    plan: dict[tuple[int, int], Splits] = {}
    for seed in range(config.seed, config.seed + repeats):
        splits = make_folds(admission.photos, folds, seed, admission.duplicates)
        plan |= {(seed, fold): split for fold, split in enumerate(splits)}
    for (seed, fold), split in plan.items():
        _check_begun(out / f"seed{seed}-fold{fold}" / "split.json", split, admission)
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for (seed, fold), split in plan.items():
        folder = out / f"seed{seed}-fold{fold}"
        log.info(f"fold     {fold + 1} of {folds}, seed {seed}")
        if checkpoint_files(folder):
            recipe.resume(folder, {"data": config.data})
        elif not (folder / "metrics.json").is_file():  # a fold stopped before its first save begins anew
            own = dataclasses.replace(config, seed=seed, out=str(folder))
            recipe.train(own, overwrite=True, argv=argv or again, split=split)
        test = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
        counts = {key: test[key] for key in ("accuracy", "correct", "photos")}
        runs.append({"seed": seed, "fold": fold, "folder": folder.name, **counts})
        rows += [{"seed": seed, "fold": fold, **row} for row in _predictions(folder)]
        write_csv(out / "predictions.csv", rows)  # after each fold: a stopped run leaves what it has
        write_json(out / SUMMARY_FILE, _summary(runs, folds, repeats))
    summary = _summary(runs, folds, repeats)
    mean, std = summary["mean"], summary["std"]
    log.info(f"folds    accuracy {mean:.4f} +- {std:.4f} over {len(runs)} networks; see {printable(out)}")
    for row in summary["by_seed"]:
        log.info(
            f"seed {row['seed']:3} {row['correct']} of {row['photos']} photos right: {row['accuracy']:.4f}"
        )
    return summary


def _check_begun(path: Path, split: Splits, admission: FilteredDataset) -> None:
    """A fold that was begun must have the photos that it would get now."""
    if not path.is_file():
        return
    begun, changes = load_split(path, admission.photos)
    fix = "restore them, or start a new cross-validation"
    changes.refuse(path, fix)
    if begun != split:
        raise DataError(f"the folds are not those of {printable(path)}: other twins were found", fix)


def _summary(runs: list[dict[str, Any]], folds: int, repeats: int) -> dict[str, Any]:
    """Mean and standard deviation over networks, and each repeat as a whole: every photo tested once."""
    accuracies = [run["accuracy"] for run in runs]
    by_seed = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        own = [run for run in runs if run["seed"] == seed]
        correct, photos = (sum(run[key] for run in own) for key in ("correct", "photos"))
        if len(own) == folds:
            by_seed.append({"seed": seed, "correct": correct, "photos": photos, "accuracy": correct / photos})
    return {
        "folds": folds,
        "repeats": repeats,
        "finished": len(runs) == folds * repeats,
        "n": len(runs),
        "mean": statistics.fmean(accuracies) if runs else None,
        "std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "by_seed": by_seed,
        "runs": runs,
    }


def _predictions(folder: Path) -> list[dict[str, Any]]:
    with (folder / "predictions.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
