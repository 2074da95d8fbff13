"""A finished run, read back from its folder for the report and the model card."""

import contextlib
import csv
import dataclasses
import datetime
import json
import tomllib
from pathlib import Path
from typing import Any

from torch import Tensor

from flowers_torch.errors import DataError, printable
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.predictions import RunPredictions, load_predictions

LABEL_ISSUES_FILE = "label_issues.json"  # label issues and learning curve, where they were computed


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """The files of a run folder. Paths, labels and what was predicted are those of the test photos."""

    folder: Path
    date: str
    data: str  # name of the data set
    split: dict[str, list[str]]  # train, val and test -> paths
    config: dict[str, Any]
    stages: list[dict[str, Any]]
    command: str
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    label_issues: dict[str, Any]  # empty where they were not computed
    predictions: RunPredictions
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Tensor  # (N,)
    probabilities: Tensor  # (N, classes), calibrated
    predicted: list[int]
    scores: Scores


def read_run(folder: Path) -> RunSummary:
    """Reads a run folder.

    Raises:
        DataError: not a finished run.
        ModelFileError: its predictions are damaged.
    """
    for name in ("config.toml", "metrics.json", "split.json"):
        if not (folder / name).is_file():
            what = f"{printable(folder)} is not a finished run: it lacks {name}"
            raise DataError(what, "name the folder that training wrote")
    predictions = load_predictions(folder)
    try:
        split, config = json.loads(_text(folder / "split.json")), tomllib.loads(_text(folder / "config.toml"))
        finished = datetime.datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime)
        logits, labels = predictions.calibrated("test"), predictions.labels["test"]
        probabilities = logits.softmax(1)
        return RunSummary(
            folder=folder,
            date=f"{finished:%Y-%m-%d %H:%M}",
            data=str(split["data"]),
            split={name: list(members) for name, members in split["splits"].items()},
            config=config,
            stages=config.get("stages", []),
            command=_text(folder / "command.txt").strip(),
            environment=json.loads(_text(folder / "environment.json") or "{}"),
            history=read_history(folder),
            metrics=json.loads(_text(folder / "metrics.json")),
            label_issues=json.loads(_text(folder / LABEL_ISSUES_FILE) or "{}"),
            predictions=predictions,
            classes=predictions.classes,
            paths=predictions.paths["test"],
            labels=labels,
            probabilities=probabilities,
            predicted=probabilities.argmax(1).tolist(),
            scores=score(logits, labels),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{printable(folder)} holds a damaged file: {printable(error, 200)}"
        raise DataError(what, "train the run again") from error


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of `history.csv` with numbers as numbers; empty if there is no such file."""
    path = folder / "history.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _number(value: str) -> Any:
    if not value:
        return None  # a stage without a learning rate
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
