"""Sections about results in numbers: accuracy by class, confusion matrix, calibration."""

from typing import Any

from markupsafe import Markup

from flowers_torch.evaluation.calibration import reliability
from flowers_torch.evaluation.learning_curve import CurvePoint
from flowers_torch.evaluation.metrics import FEW_IMAGES, wilson
from flowers_torch.evaluation.selective import risk_coverage_curve
from flowers_torch.report.charts import Axis, Series, line_chart, percent_tick, reliability_chart
from flowers_torch.report.run_summary import RunSummary

MATRIX_CLASSES = 40  # more classes get a list of the most common confusions
CONFUSIONS = 60  # in that list


def class_rows(run: RunSummary) -> list[dict[str, Any]]:
    """Recall with its interval, precision and F1 of each class, lowest recall first."""
    scores = run.scores
    photos, correct = scores.supports(), scores.confusion.diag()
    columns = (photos, correct, scores.recalls(), scores.precisions(), scores.f1s())
    keys = ("name", "photos", "correct", "recall", "precision", "f1")
    values = zip(run.classes, *(column.tolist() for column in columns), strict=True)
    rows = [dict(zip(keys, row, strict=True)) for row in values]
    present = [
        row | {"few": row["photos"] < FEW_IMAGES, "interval": wilson(row["correct"], row["photos"])}
        for row in rows
        if row["photos"]
    ]
    return sorted(present, key=lambda row: (row["recall"], row["f1"]))


def confusion_cells(run: RunSummary) -> dict[str, list[int]]:
    """The test photos of each non-empty cell of the confusion matrix, by "label,predicted"."""
    cells: dict[str, list[int]] = {}
    for photo, pair in enumerate(zip(run.labels.tolist(), run.predicted, strict=True)):
        cells.setdefault("{},{}".format(*pair), []).append(photo)
    return cells


def confusion_rows(run: RunSummary, cells: dict[str, list[int]]) -> list[list[tuple[int, int, int]]]:
    """(label, predicted, photos) of each cell; of many classes a row for each of the commonest confusions."""
    counts, classes = run.scores.confusion.tolist(), range(len(run.classes))
    if len(run.classes) <= MATRIX_CLASSES:
        return [[(i, j, counts[i][j]) for j in classes] for i in classes]
    pairs = [tuple(map(int, key.split(","))) for key in sorted(cells, key=lambda key: -len(cells[key]))]
    return [[(i, j, counts[i][j])] for i, j in pairs if i != j][:CONFUSIONS]


def calibration_charts(run: RunSummary) -> dict[str, Markup]:
    """Stated probability against accuracy, and the error rate when only confident predictions count."""
    confidence, predicted = run.probabilities.max(1)
    correct = predicted == run.labels
    photos, curve = len(correct), risk_coverage_curve(confidence, correct)
    points = [(answered / photos, wrong / answered) for _, answered, wrong in curve]
    y = Axis(format=percent_tick, limits=(0.0, max(0.01, *(error for _, error in points)) * 1.1))
    label = "fraction of photos answered, most confident first"
    x = Axis(label, percent_tick, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))
    title = "Error rate by fraction of photos answered"
    return {
        "reliability": reliability_chart(reliability(confidence, correct), photos),
        "selective_prediction": line_chart(title, [Series("errors", "b", points)], x, y),
    }


def learning_curve_chart(run: RunSummary) -> dict[str, Markup]:
    """Accuracy by number of training photos, where it was computed."""
    if not run.label_issues:
        return {}
    points = [CurvePoint(**point) for point in run.label_issues["curve"]]
    band = [(p.low, p.high) for p in points]
    chart = line_chart(
        "Accuracy by number of training photos",
        [Series("", "b", [(p.images, p.accuracy) for p in points], band)],
        Axis("training photos (linear head on fixed features)", "{:,.0f}".format),
        Axis(format=percent_tick, limits=(min(p.low for p in points), 1.0)),
    )
    return {"learning_curve": chart}
