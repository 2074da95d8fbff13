"""`report.html`: everything about a run in one file that opens anywhere, offline."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from flowers_torch.evaluation.advice import advise_on_training
from flowers_torch.evaluation.metrics import FEW_IMAGES, weakest_class, wilson
from flowers_torch.evaluation.prediction_sets import coverage_of, set_thresholds
from flowers_torch.evaluation.selective import read_curve, thresholds
from flowers_torch.files.atomic import refuse_link, write_text
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.report import image_sections, provenance
from flowers_torch.report.attempt import Attempt
from flowers_torch.report.charts import calibration_charts, history_charts, learning_curve_chart, standalone
from flowers_torch.report.image_sections import Source
from flowers_torch.report.run_summary import RunSummary, read_run
from flowers_torch.report.templating import render

REPORT_FILE = "report.html"
MATRIX_CLASSES = 40  # of more, the most common confusions and the classes with the lowest recall come first
CONFUSIONS = 60  # in that list
FEW_FOR_ACCURACY = 100  # with fewer test photos the page leads with the interval
SECTIONS = {
    "summary": "Summary",
    "update": "Before and after",
    "learning": "Training",
    "classes": "Classes",
    "confusion": "Confusion matrix",
    "mistakes": "Mistakes",
    "confidence": "Confidence",
    "calibration": "Calibration",
    "map": "Map",
    "label-issues": "Label issues",
    "data": "Data",
    "network": "Network",
    "repeat": "Reproduction",
    "card": "Model card",
}
LEFT_OUT = Markup("<p>This section could not be made.</p>")


def write_report(folder: Path, info: ModelInfo, source: Source | None) -> Path:
    """Writes `report.html` and `figures/*.svg` into a run folder; without a source the pictures are left out.

    A part that fails is left out, with a line in the log and on the page.

    Raises:
        DataError: not a finished run.
    """
    run, attempt = read_run(folder), source.attempt if source else Attempt()
    charts: dict[str, Markup] = attempt("charts", lambda: _charts(run), {})
    cells, classes, pretrained = confusion_cells(run), len(run.classes), info.weights != "none"
    rows = class_rows(run, image_sections.training_counts(run, source))
    training = (run.history, run.stages, classes, len(run.split["val"]), pretrained, run.config.get("mirror") == "yes")
    values: dict[str, Any] = {
        "listed": {},
        "cells": {},
        "run": run,
        "info": info,
        "charts": charts,
        "weakest": weakest_class(run.scores),
        "few_photos": FEW_IMAGES,
        "few_for_accuracy": FEW_FOR_ACCURACY,
        "advice": attempt("advice", lambda: advise_on_training(*training), []),
        "class_rows": rows,
        "many_classes": MATRIX_CLASSES,
        "confusion_rows": confusion_rows(run, cells),
        "dots": attempt("map", lambda: image_sections.map_dots(run), []),
        "hues": image_sections.hues(classes),
        "split_counts": provenance.split_counts(run),
        "settings": provenance.settings(run),
        "freeze_tables": attempt("freezing", lambda: _freeze_tables(run, source), {}),
        "model_card": provenance.model_card(info, run),
        "max_error": promised_error(info),
        "sets": sets_on_test(info, run),
    }
    of_classes = [row["photo"] for row in rows[:MATRIX_CLASSES]]
    of_test = partial(image_sections.figures_of_test, run, info.preprocessing, cells=cells, of_classes=of_classes)
    value_range = info.preprocessing.value_range
    other = partial(image_sections.other_figures, run, mirror=info.mirror, value_range=value_range)
    values |= _figures(attempt, source, of_test) | _figures(attempt, source, other)
    there = {"update": run.update, "learning": run.history, "map": values["dots"]}
    titles = {name: title for name, title in SECTIONS.items() if there.get(name, True)}
    sections = {
        name: (title, attempt(title, partial(_section, name, values), LEFT_OUT)) for name, title in titles.items()
    }
    page = render("report.html.jinja", values | {"sections": sections, "lacks": attempt.lines})
    write_text(folder / REPORT_FILE, page)
    figures = refuse_link(folder / "figures")
    for name, chart in charts.items():
        write_text(figures / f"{name}.svg", standalone(chart))
    return folder / REPORT_FILE


def _section(name: str, values: dict[str, Any]) -> Markup:
    return Markup(render(f"sections/{name}.html.jinja", values))


def _charts(run: RunSummary) -> dict[str, Markup]:
    stages = [f"{stage['name']}: {stage['train']}" for stage in run.stages]
    charts = history_charts(run.history, stages) if len(run.history) > 1 else {}
    charts |= calibration_charts(run)
    if run.label_issues:
        charts["learning_curve"] = learning_curve_chart(run.label_issues["curve"])
    return charts


def _freeze_tables(run: RunSummary, source: Source | None) -> dict[str, str]:
    return provenance.freeze_tables(run.stages, source.model) if source else {}


def promised_error(info: ModelInfo) -> str:
    """The smallest of some error rates that `--max-error` can promise with the validation photos; empty for none."""
    rates = thresholds(read_curve(info.selective)) if info.selective.get("curve") else {}
    return f"{min(rates):.0%}" if rates else ""


def sets_on_test(info: ModelInfo, run: RunSummary) -> dict[str, Any]:
    """The prediction sets of the highest coverage that can be promised, on the test photos; empty for none."""
    promised = set_thresholds(info.selective.get("sets") or {})
    if not promised:
        return {}
    coverage, threshold = max(promised.items())
    inside, size = coverage_of(run.probabilities, run.labels, threshold)
    interval = wilson(inside, len(run.labels))
    return {"coverage": f"{coverage:.0%}", "inside": inside, "interval": interval, "size": size}


def _figures(attempt: Attempt, source: Source | None, make: Callable[[Source | None], Any]) -> dict[str, Any]:
    """What `make` finds, without photos where they cannot be shown."""
    found: dict[str, Any] = attempt("photos", lambda: make(source), {}) if source else {}
    return found or attempt("figures", lambda: make(None), {})


def class_rows(run: RunSummary, training: dict[str, int]) -> list[dict[str, Any]]:
    """Each class with test photos: numbers of photos, precision, recall, F1 and so on, lowest recall first.

    `photo` is the index of a test photo that shows it, if possible one that was recognized.
    """
    columns = run.scores.by_class() | {"correct": run.scores.confusion.diag()}
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = [
        dict(zip(columns, row, strict=True)) | {"name": name, "train": training.get(name), "label": label}
        for label, (name, row) in enumerate(zip(run.classes, values, strict=True))
    ]
    of_label = run.probabilities.gather(1, run.labels[:, None])[:, 0]
    for row in rows:
        row["photo"] = int(torch.where(run.labels == row["label"], of_label, -1.0).argmax())
    present = [row | {"interval": wilson(row["correct"], row["support"])} for row in rows if row["support"]]
    return sorted(present, key=lambda row: (row["recall"], row["f1"]))


def confusion_cells(run: RunSummary) -> dict[str, list[int]]:
    """The test photos of each non-empty cell of the confusion matrix, by "label,predicted"."""
    cells: dict[str, list[int]] = {}
    for photo, (label, guess) in enumerate(zip(run.labels.tolist(), run.predicted, strict=True)):
        cells.setdefault(f"{label},{guess}", []).append(photo)
    return cells


def confusion_rows(run: RunSummary, cells: dict[str, list[int]]) -> list[list[tuple[int, int, int]]]:
    """(label, predicted, photos) of each cell; of many classes a row for each of the commonest confusions."""
    counts, classes = run.scores.confusion.tolist(), range(len(run.classes))
    if len(run.classes) <= MATRIX_CLASSES:
        return [[(i, j, counts[i][j]) for j in classes] for i in classes]
    pairs = [tuple(map(int, key.split(","))) for key in sorted(cells, key=lambda key: -len(cells[key]))]
    return [[(i, j, counts[i][j])] for i, j in pairs if i != j][:CONFUSIONS]
