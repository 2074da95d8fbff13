"""A finished run, read back from its folder for the report and the model card."""

import dataclasses
import datetime
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from flowers_torch.data.splits.split_file import read_split
from flowers_torch.errors import DataError, printable
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.predictions import RunPredictions, load_predictions
from flowers_torch.files.reading import check, read_bytes, read_csv, read_json, read_toml, reading

UPDATE_FILE = "update.json"
LABEL_ISSUES_FILE = "label_issues.json"  # label issues and learning curve, where they were computed
FRACTION = (0.0, 1.0)
LOSS = (0.0, 1e300)
HISTORY_FORM = {  # the columns that are read
    "stage": str,
    "epoch": (1, 10**9),
    "lr?": (1e-300, 1e300),
    **{f"{kind}_loss": LOSS for kind in ("train", "val", "val_calibrated")},
    **{f"{kind}_accuracy": FRACTION for kind in ("train", "val")},
    "seconds": (0.0, 1e12),
}
METRICS_FORM = {
    "best_epoch?": {"epoch": int, "stage": str},
    "uncalibrated?": {"calibration_error": FRACTION},
    "changes?": [object],
}
ISSUE = {"file": str, "label": str, "looks_like": str, "probability": FRACTION}
LABEL_ISSUES_FORM = {
    "more_photos": str,
    "curve": [{"images": (0.0, 1e9), "accuracy": FRACTION, "low": FRACTION, "high": FRACTION, "spread": FRACTION}],
    "label_issues": [ISSUE],
}
UPDATE_FORM = {  # what `update` wrote about the model that it started from
    **{name: (0, 10**9) for name in ("images", "first_correct", "second_correct")},
    **{name: [str] for name in ("only_first", "only_second")},
    "p_value": FRACTION,
    "interval": [(-1.0, 1.0), 2, 2],
    "former": str,
    "new_classes": {str: [(0, 10**9), 2, 2]},
}
STAGE_FORM = {"name": str, "train": object, "epochs": (0, 10**9), "augment": str, "lr?": float}


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
    update: dict[str, Any]  # the comparison with the model that it started from; empty without one
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
    split = read_split(folder / "split.json")
    config = read_toml(folder / "config.toml", "the configuration of a run", DataError)
    with reading(folder / "config.toml", "the configuration of a run"):
        stages = check(config, {"size?": (0, 10**4), "stages": [STAGE_FORM]})["stages"]
    issues = _read_values(folder / LABEL_ISSUES_FILE, LABEL_ISSUES_FORM)
    if not stages or issues.get("curve") == []:
        raise DataError(f"{printable(folder)} has no stages, or a learning curve without points", "train it again")
    command = folder / "command.txt"
    finished = datetime.datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime)
    logits, labels = predictions.calibrated("test"), predictions.labels["test"]
    probabilities = logits.softmax(1)
    return RunSummary(
        folder=folder,
        date=f"{finished:%Y-%m-%d %H:%M}",
        data=split["data"],
        split={name: list(members) for name, members in split["splits"].items()},
        config=config,
        stages=stages,
        command=read_bytes(command, "a command").decode("utf-8", "replace").strip() if command.is_file() else "",
        environment=_read_values(folder / "environment.json", {str: object}),
        history=read_history(folder),
        metrics=_read_values(folder / "metrics.json", METRICS_FORM),
        label_issues=issues,
        update=_read_values(folder / UPDATE_FILE, UPDATE_FORM),
        predictions=predictions,
        classes=predictions.classes,
        paths=predictions.paths["test"],
        labels=labels,
        probabilities=probabilities,
        predicted=probabilities.argmax(1).tolist(),
        scores=score(logits, labels),
    )


def _read_values(path: Path, form: Any) -> dict[str, Any]:
    """A JSON file of a run; empty if there is none."""
    return dict(read_json(path, "a record of a run", form)) if path.is_file() else {}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of `history.csv` with numbers as numbers; empty if there is no such file."""
    path = folder / "history.csv"
    if not path.is_file():
        return []
    rows = read_csv(path, "a history of a run", [key.removesuffix("?") for key in HISTORY_FORM])
    with reading(path, "a history of a run"):
        return [_history_row(row) for row in rows]


def _history_row(row: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {key: value if key == "stage" else _number(value) for key, value in row.items()}
    lost = {key: 0.0 for key, value in values.items() if key.endswith("loss") and not math.isfinite(value)}
    check(values | lost, HISTORY_FORM)  # a loss may not be finite
    return values


def _number(value: str) -> int | float | None:
    if not value:
        return None  # a stage without a learning rate
    return int(value) if value.isdecimal() else float(value)
