"""A finished run, read back from its folder for the report and the model card."""

import contextlib
import csv
import dataclasses
import datetime
import functools
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
    """The files of a run folder. Labels, paths and predictions are those of the test photos."""

    folder: Path
    config: dict[str, Any]
    command: str
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    split: dict[str, list[str]]  # train, val and test -> paths
    data: str  # name of the data set
    predictions: RunPredictions
    label_issues: dict[str, Any]  # empty where they were not computed
    date: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictions.classes

    @property
    def stages(self) -> list[dict[str, Any]]:
        return self.config.get("stages", [])

    @property
    def labels(self) -> Tensor:
        """(N,)."""
        return self.predictions.labels["test"]

    @property
    def paths(self) -> tuple[str, ...]:
        return self.predictions.paths["test"]

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """(N, classes), calibrated."""
        return self.predictions.calibrated("test").softmax(1)

    @functools.cached_property
    def predicted(self) -> list[int]:
        return self.probabilities.argmax(1).tolist()

    @functools.cached_property
    def scores(self) -> Scores:
        return score(self.predictions.calibrated("test"), self.labels)


def read_run(folder: Path) -> RunSummary:
    """Reads a run folder.

    Raises:
        DataError: not a finished run.
        ModelFileError: its predictions are damaged.
    """
    folder = Path(folder)
    for name in ("config.toml", "metrics.json", "split.json"):
        if not (folder / name).is_file():
            what = f"{printable(folder)} is not a finished run: it lacks {name}"
            raise DataError(what, "name the folder that training wrote")
    predictions = load_predictions(folder)
    try:
        split = json.loads(_text(folder / "split.json"))
        finished = datetime.datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime)
        return RunSummary(
            folder,
            tomllib.loads(_text(folder / "config.toml")),
            _text(folder / "command.txt").strip(),
            json.loads(_text(folder / "environment.json") or "{}"),
            read_history(folder),
            json.loads(_text(folder / "metrics.json")),
            {name: list(members) for name, members in split["splits"].items()},
            str(split["data"]),
            predictions,
            json.loads(_text(folder / LABEL_ISSUES_FILE) or "{}"),
            f"{finished:%Y-%m-%d %H:%M}",
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
