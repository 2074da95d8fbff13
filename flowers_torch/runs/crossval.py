"""Cross-validation: the recipe once per fold. Every image is tested by a network that never saw it."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, with_absolute_paths
from flowers_torch.config_file import load_config, to_toml
from flowers_torch.data.splits.kfold import make_folds
from flowers_torch.data.splits.split_file import load_split
from flowers_torch.errors import DataError, UsageError, plural, printable
from flowers_torch.evaluation.metrics import PREDICTION_COLUMNS, wilson
from flowers_torch.files.atomic import write_csv, write_json, write_text
from flowers_torch.files.reading import read_csv, read_json
from flowers_torch.log import log
from flowers_torch.report.attempt import Attempt
from flowers_torch.report.crossval_page import write_crossval_report
from flowers_torch.runs import recipe
from flowers_torch.runs.dataset import open_images
from flowers_torch.runs.folder import SUMMARY_FILE, new_run_folder
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import checkpoint_files

SUMMARY_FORM = {"folds": (3, 1000), "repeats": (1, 1000), "runs": [{"seed": int, "fold": (0, 999)}]}
COUNTS_FORM = {"test": {"accuracy": (0.0, 1.0), "correct": (0, 10**9), "images": (1, 10**9)}}


def cross_validate(
    config: Config, folds: int = 5, repeats: int = 1, out: str | Path = "", command: Sequence[str] | None = None
) -> dict[str, Any]:
    """Trains folds times repeats networks; writes `crossval.json`, which it returns, and `predictions.csv`.

    Args:
        config: Of each run; its `split` is not used. Repeat r has the seed `config.seed + r`.
        folds: At least 3: one to test, one to choose the best epoch, the others to train.
        repeats: Number of times that new folds are drawn.
        out: Folder of the cross-validation; empty for the next free one in `runs/`.

    Raises:
        UsageError: the configuration has photos to test on.
        DataError: the images cannot be divided into folds.
    """
    if config.test:
        what = "--test cannot be used with crossval, which tests every photo of --data once"
        raise UsageError(what, "leave out --test and the key test of the --config file, or use train")
    config = with_absolute_paths(config)
    filtered = open_images(config)
    make_folds(filtered.dataset, folds, config.seed, filtered.duplicates)  # errors come before any folder
    folder = new_run_folder(str(out), filtered.dataset.name, f"{config.arch}-crossval")
    resuming = command_line("flowers-torch", "crossval", "--resume", folder.absolute())
    write_text(
        folder / "config.toml", to_toml(config, f"{folds} folds, {plural(repeats, 'repeat')}; resume with: {resuming}")
    )
    write_json(folder / SUMMARY_FILE, _summary([], folds, repeats))
    return resume(folder, command=command)


def resume(out: Path, data: str = "", command: Sequence[str] | None = None) -> dict[str, Any]:
    """Resumes an interrupted cross-validation: finished folds stay, the unfinished one is resumed.

    `data` is where its images are now; empty if they have not moved.

    Raises:
        UsageError: the folder does not hold a cross-validation.
        DataError: the images have changed.
    """
    if not (out / SUMMARY_FILE).is_file():
        what = f"{printable(out)} is not a cross-validation: expected a {SUMMARY_FILE} in it"
        raise UsageError(what, "name the folder that crossval wrote")
    saved = read_json(out / SUMMARY_FILE, "a summary of a cross-validation", SUMMARY_FORM)
    folds, repeats = saved["folds"], saved["repeats"]
    config = with_absolute_paths(load_config(data=data, file=str(out / "config.toml")))
    filtered = open_images(config, out)
    flags = ["--config", str((out / "config.toml").absolute()), "--folds", str(folds), "--repeats", str(repeats)]
    command = command or ["flowers-torch", "crossval", *flags]
    plan = [
        (seed, fold, fold_folder(out, seed, fold), split)
        for seed in range(config.seed, config.seed + repeats)
        for fold, split in enumerate(make_folds(filtered.dataset, folds, seed, filtered.duplicates))
    ]
    for _, _, folder, split in plan:  # a fold that would now get another split is not continued
        path, fix = folder / "split.json", "restore them, or start a new cross-validation"
        if path.is_file():
            before, changes = load_split(path, filtered.dataset)
            changes.refuse(path, fix)
            if before != split:
                raise DataError(f"the folds differ from those of {printable(path)}: other duplicates were found", fix)
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed, fold, folder, split in plan:
        log.info(f"fold     {fold + 1} of {folds}, seed {seed}")
        if checkpoint_files(folder):
            recipe.resume(folder, {"data": config.data})
        elif not (folder / "metrics.json").is_file():  # a fold without a checkpoint starts again
            own = dataclasses.replace(config, seed=seed)
            recipe.train(own, folder, overwrite=True, command=command, splits=split)
        test = read_json(folder / "metrics.json", "the result of a fold", COUNTS_FORM)["test"]
        counts = {key: test[key] for key in ("accuracy", "correct", "images")}
        runs.append({"seed": seed, "fold": fold, "folder": folder.name, **counts})
        predictions = read_csv(folder / "predictions.csv", "the predictions of a fold", PREDICTION_COLUMNS)
        rows += [{"seed": seed, "fold": fold} | {name: row[name] for name in PREDICTION_COLUMNS} for row in predictions]
        write_csv(out / "predictions.csv", rows)  # after each fold, so that a stopped run leaves what it has
        write_json(out / SUMMARY_FILE, _summary(runs, folds, repeats))
    summary = _summary(runs, folds, repeats)
    mean, std = summary["mean"], summary["std"]
    log.info(f"folds    accuracy {mean:.4f} +- {std:.4f} over {plural(runs, 'network')}; see {printable(out)}")
    for row in summary["by_seed"]:
        low, high = row["interval_95"]
        count = f"{row['correct']} of {plural(row['images'], 'photo')} correct"
        log.info(f"seed {row['seed']:3} {count}: {row['accuracy']:.4f} (95% interval {low:.3f} .. {high:.3f})")
    arguments = (out, summary, rows, filtered.dataset, config.arch)
    if page := Attempt()("the page", lambda: write_crossval_report(*arguments), None):
        log.info(f"report   {printable(page)}")
    return summary


def fold_folder(folder: Path, seed: int, fold: int) -> Path:
    """The run folder of a fold."""
    return folder / f"seed{seed}-fold{fold}"


def _summary(runs: list[dict[str, Any]], folds: int, repeats: int) -> dict[str, Any]:
    """Mean and standard deviation over networks, and each repeat as a whole: every image is tested once."""
    accuracies = [run["accuracy"] for run in runs]
    by_seed = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        own = [run for run in runs if run["seed"] == seed]
        correct, photos = (sum(run[key] for run in own) for key in ("correct", "images"))
        if len(own) == folds:
            found = {"seed": seed, "correct": correct, "images": photos, "accuracy": correct / photos}
            by_seed.append(found | {"interval_95": list(wilson(correct, photos))})
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
