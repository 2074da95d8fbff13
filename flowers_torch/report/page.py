"""`report.html`: everything about a run in one file that opens anywhere, offline."""

from pathlib import Path
from typing import Any

from flowers_torch import __version__
from flowers_torch.evaluation.advice import advise_on_training
from flowers_torch.evaluation.metrics import FEW_IMAGES, weakest_class, wilson
from flowers_torch.files.atomic import refuse_link, write_text
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.report import image_sections, provenance
from flowers_torch.report.charts import calibration_charts, history_charts, learning_curve_chart, standalone
from flowers_torch.report.image_sections import Source
from flowers_torch.report.run_summary import RunSummary, read_run
from flowers_torch.report.templating import render

REPORT_FILE = "report.html"
MATRIX_CLASSES = 40  # more classes get a list of the most common confusions
CONFUSIONS = 60  # in that list


def write_report(folder: Path, info: ModelInfo, source: Source | None) -> Path:
    """Writes `report.html` and `figures/*.svg` into a run folder; without a source the pictures are left out.

    Raises:
        DataError: not a finished run.
    """
    run = read_run(folder)
    stages = [f"{stage['name']}: {stage['train']}" for stage in run.stages]
    charts = history_charts(run.history, stages) if len(run.history) > 1 else {}
    charts |= calibration_charts(run)
    if run.label_issues:
        charts["learning_curve"] = learning_curve_chart(run.label_issues["curve"])
    cells, classes, pretrained = confusion_cells(run), len(run.classes), info.weights != "none"
    values: dict[str, Any] = {
        "run": run,
        "info": info,
        "version": __version__,
        "charts": charts,
        "weakest": weakest_class(run.scores),
        "few_photos": FEW_IMAGES,
        "advice": advise_on_training(run.history, run.stages, classes, len(run.split["val"]), pretrained),
        "class_rows": class_rows(run),
        "confusion_rows": confusion_rows(run, cells),
        "dots": image_sections.map_dots(run),
        "hues": image_sections.hues(classes),
        "split_counts": provenance.split_counts(run),
        "settings": provenance.settings(run),
        "freeze_tables": provenance.freeze_tables(run.stages, source.model) if source else {},
        "model_card": provenance.model_card(info, run),
        **image_sections.figures_of_test(run, info.preprocessing, source, cells),
        **image_sections.other_figures(run, source),
    }
    write_text(folder / REPORT_FILE, render("report.html.jinja", values))
    figures = refuse_link(folder / "figures")
    for name, chart in charts.items():
        write_text(figures / f"{name}.svg", standalone(chart))
    return folder / REPORT_FILE


def class_rows(run: RunSummary) -> list[dict[str, Any]]:
    """Each class with test photos: number of photos, precision, recall, F1 and so on, lowest recall first."""
    columns = run.scores.by_class() | {"correct": run.scores.confusion.diag()}
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = [
        dict(zip(columns, row, strict=True)) | {"name": name} for name, row in zip(run.classes, values, strict=True)
    ]
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
