"""What a run folder says of a run, read back for its report."""

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
from flowers_torch.evaluation.answers import Predictions, load_predictions
from flowers_torch.evaluation.metrics import Scores, score

INSIGHT_FILE = "insight.json"  # written by `flowers-torch insight`


@dataclasses.dataclass(frozen=True)
class Facts:
    """A finished run, as its folder tells it."""

    folder: Path
    config: dict[str, Any]
    command: str
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    split: dict[str, list[str]]  # part -> paths
    data: str  # name of the photos
    predictions: Predictions
    insight: dict[str, Any]
    made: str  # date

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictions.classes

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """Of the test photos (N, classes)."""
        return self.predictions.calibrated("test").softmax(1)

    @property
    def labels(self) -> Tensor:
        """Of the test photos (N,)."""
        return self.predictions.labels["test"]

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the test photos."""
        return self.predictions.paths["test"]

    def scores(self) -> Scores:
        """Of the test."""
        return score(self.predictions.calibrated("test"), self.labels)


def read_facts(folder: Path) -> Facts:
    """Reads a run folder.

    Raises:
        DataError: not a finished run.
        ModelFileError: its predictions are damaged.
    """
    folder = Path(folder)
    for name in ("config.toml", "metrics.json", "split.json"):
        if not (folder / name).is_file():
            raise DataError(
                f"{printable(folder)} is no finished run: it lacks {name}",
                "name the folder that training wrote",
            )
    predictions = load_predictions(folder)
    try:
        split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        metrics_file = folder / "metrics.json"
        made = datetime.datetime.fromtimestamp(metrics_file.stat().st_mtime)
        return Facts(
            folder,
            tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")),
            _text(folder / "command.txt").strip(),
            json.loads(_text(folder / "environment.json") or "{}"),
            read_history(folder),
            json.loads(metrics_file.read_text(encoding="utf-8")),
            {part: list(members) for part, members in split["parts"].items()},
            str(split["data"]),
            predictions,
            json.loads(_text(folder / INSIGHT_FILE) or "{}"),
            f"{made:%Y-%m-%d %H:%M}",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{printable(folder)} holds a damaged file: {printable(error, 200)}", "train the run again"
        ) from error


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of `history.csv`, numbers as numbers; empty where there is none."""
    path = folder / "history.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _number(value: str) -> Any:
    if not value:
        return None  # a stage without a learning rate
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
