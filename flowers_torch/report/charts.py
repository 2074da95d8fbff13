"""Charts as inline SVG: geometry here, drawing in templates, colors in the page's style sheet."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from flowers_torch.errors import printable
from flowers_torch.evaluation.metrics import reliability, wilson
from flowers_torch.evaluation.selective import risk_coverage_curve
from flowers_torch.report.run_summary import RunSummary
from flowers_torch.report.templating import percent, render

WIDTH, HEIGHT = 360, 230  # fits a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 52, 14, 34  # margins
LOG_RATIO = 40  # of the highest to the lowest loss; from here on their axis is logarithmic
LINE_HEIGHT = 12
MARK_HEIGHT, MARK_LETTER = 11, 6  # of a label of a dotted line; a letter is at most so wide
MARK_LENGTH = 24  # letters
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_FRAME: dict[str, Any] = {"width": WIDTH, "height": HEIGHT}
_FRAME |= {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


@dataclasses.dataclass(frozen=True)
class Series:
    """A line: its name, its color (a, b or c), its points, and optionally a band of (low, high).

    The line is interrupted in front of the points at `breaks`.
    """

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    breaks: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Axis:
    """How an axis looks; empty ticks and missing limits follow from the points."""

    label: str = ""
    format: Callable[[float], str] = "{:g}".format
    ticks: Sequence[float] = ()
    limits: tuple[float, float] | None = None
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps the values low .. high of an axis to the pixels start .. end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, marks: Sequence[tuple[float, str]] = ()
) -> Markup:
    """Lines over a common x, labeled at their ends; `marks` are (x, label) of dotted vertical lines.

    Every series has at least one point. The ticks of x are by default at some of the points.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for s in series for pair in s.band for y in pair]
    x_ticks = x.ticks or (_log_ticks(xs) if x.log else _ticks_at(sorted(set(xs))))
    y_ticks = y.ticks or (_log_ticks(ys) if y.log else nice_ticks(*(y.limits or (min(ys), max(ys)))))
    to_x = Scale(min(*xs, x_ticks[0]), max(*xs, x_ticks[-1]), LEFT, WIDTH - RIGHT, x.log)
    to_y = Scale(*(y.limits or (y_ticks[0], y_ticks[-1])), HEIGHT - BOTTOM, TOP, y.log)
    lines: list[dict[str, Any]] = []
    for s in sorted(series, key=lambda s: to_y(s.points[-1][1])):
        dots = [(to_x(px), to_y(py), f"{s.name} {x.format(px)}: {y.format(py)}") for px, py in s.points]
        edges = [(dot[0], to_y(low), to_y(high)) for dot, (low, high) in zip(dots, s.band, strict=False)]
        band = [(px, high) for px, _, high in edges] + [(px, low) for px, low, _ in reversed(edges)]
        clear = lines[-1]["name_at"] + LINE_HEIGHT if lines else 0.0  # names must not overlap
        cuts = [0, *(i for i, (px, _) in enumerate(s.points) if px in s.breaks and i), len(dots)]
        pieces = [dots[start:end] for start, end in itertools.pairwise(cuts)]
        lines.append({"series": s, "band": band, "pieces": pieces, "name_at": max(dots[-1][1] + 4, clear)})
    values = {
        "title": title,
        "lines": lines,
        "x_label": x.label,
        "x_ticks": [(to_x(tick), x.format(tick)) for tick in x_ticks],
        "y_ticks": [(to_y(tick), y.format(tick)) for tick in y_ticks if to_y.low <= tick <= to_y.high],
        "marks": mark_places([(to_x(at), label) for at, label in marks]),
    }
    return render("line_chart.svg.jinja", _FRAME | values)


def mark_places(marks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """Dotted lines at (x, label) whose labels stand one below the other, because stages may be short.

    A label stands at the right of its line, or at the left where that is late. A line begins below the labels that it
    would cross.
    """
    places: list[dict[str, Any]] = []
    for row, (x, label) in enumerate(marks):
        text, late = printable(label, MARK_LENGTH), x > LEFT + 0.6 * (WIDTH - RIGHT - LEFT)
        width = 3 + MARK_LETTER * len(text)
        ends = (x - width, x) if late else (x, x + width)
        baseline = TOP + 9 + MARK_HEIGHT * row
        places.append({"x": x, "label": text, "late": late, "baseline": baseline, "ends": ends})
    for place in places:
        crossed = [other["baseline"] for other in places if other["ends"][0] < place["x"] < other["ends"][1]]
        place["top"] = max(crossed) + 3 if crossed else TOP
    return places


def calibration_charts(run: RunSummary) -> dict[str, Markup]:
    """Bars of accuracy by stated probability, and the error rate when only confident predictions count."""
    confidence, predicted = run.probabilities.max(1)
    correct, photos = predicted == run.labels, len(predicted)
    right = WIDTH - 24
    to_x, to_y = Scale(0, 1, LEFT, right), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    few = max(5, photos / 100)  # bars of fewer vary by chance and are drawn paler
    bars = [
        {"x": (to_x(b.low) + 1, to_x(b.high) - 1), "y": to_y(b.accuracy), "bin": b, "few": b.images < few}
        | {"interval": [to_y(end) for end in wilson(round(b.accuracy * b.images), b.images)]}
        for b in reliability(confidence, correct)
    ]
    ticks = [(to_x(tick), to_y(tick), f"{tick:.0%}") for tick in QUARTERS]
    points = [(answered / photos, wrong / answered) for _, answered, wrong in risk_coverage_curve(confidence, correct)]
    x = Axis("fraction of photos answered, most confident first", percent_tick, ticks=QUARTERS)
    y = Axis(format=percent_tick, limits=(0.0, max(0.01, *(error for _, error in points)) * 1.1))
    errors, title = [Series("errors", "b", points)], "Error rate by fraction of photos answered"
    return {
        "reliability": render("reliability_chart.svg.jinja", _FRAME | {"bars": bars, "ticks": ticks, "right": right}),
        "selective_prediction": line_chart(title, errors, x, y),
    }


def learning_curve_chart(points: Sequence[dict[str, Any]]) -> Markup:
    """Accuracy by number of training photos, from the fields of `CurvePoint`."""
    accuracies = [(point["images"], point["accuracy"]) for point in points]
    x = Axis("training photos (linear head on fixed features)", "{:,.0f}".format)
    y = Axis(format=percent_tick, limits=(min(point["low"] for point in points), 1.0))
    series = Series("", "b", accuracies, [(point["low"], point["high"]) for point in points])
    return line_chart("Accuracy by number of training photos", [series], x, y)


def history_charts(history: Sequence[dict[str, Any]], stages: Sequence[str]) -> dict[str, Markup]:
    """Loss, accuracy and learning rate over the epochs; `stages` label the lines where stages begin."""
    names = [row["stage"] for row in history]
    labels = dict(zip(dict.fromkeys(names), stages, strict=False))
    starts = [number for number, name in enumerate(names) if number == 0 or name != names[number - 1]]
    marks = [(number + 0.5 if number else 1.0, labels.get(names[number], str(names[number]))) for number in starts]
    breaks = [float(number + 1) for number in starts]  # losses of stages with other criteria are no one line

    def line(name: str, key: str, color: str) -> Series:
        values = [(float(e), row[key]) for e, row in enumerate(history, start=1) if row[key] is not None]
        return Series(name, color, [(e, value) for e, value in values if math.isfinite(value)], breaks=breaks)

    losses = [line("train", "train_loss", "a"), line("val", "val_loss", "b")]
    losses = [s for s in losses if s.points]  # a loss may never have been finite
    accuracies = [line("train", "train_accuracy", "a"), line("val", "val_accuracy", "b")]
    heights = [y for s in losses for _, y in s.points]
    lowest = min(y for s in accuracies for _, y in s.points)
    x, fractions = Axis("epoch"), Axis(format=percent_tick, limits=(math.floor(lowest * 10) / 10, 1.0))
    wide = bool(heights) and min(heights) > 0 and max(heights) > LOG_RATIO * min(heights)
    charts = {"loss": line_chart("Loss", losses, x, Axis(log=wide), marks)} if losses else {}
    charts["accuracy"] = line_chart("Accuracy", accuracies, x, fractions, marks)
    if any(row["lr"] for row in history):
        x = Axis("epoch", ticks=_ticks_at([float(e) for e in range(1, len(history) + 1)]))
        title, y = "Learning rate at the start of each epoch", Axis(format="{:.0e}".format, log=True)
        charts["learning_rate"] = line_chart(title, [line("lr", "lr", "c")], x, y, marks)
    return charts


def sweep_chart(rates: Sequence[float], losses: Sequence[float], suggestion: float) -> Markup:
    """Smoothed loss over growing learning rates, with a line at the suggested one."""
    top = 2 * losses[0] - min(losses)  # the divergence at the end must not flatten the rest
    points = [(rate, min(loss, top)) for rate, loss in zip(rates, losses, strict=True)]
    x, marks = Axis("learning rate", "{:.0e}".format, log=True), [(suggestion, f"{suggestion:g}")]
    return line_chart("Loss over the learning rate", [Series("loss", "b", points)], x, Axis(), marks)


def standalone(chart: Markup) -> Markup:
    """A chart as an SVG file of its own, with its style."""
    return render("standalone.svg.jinja", _FRAME | {"chart": chart})


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low .. high, about `count` of them."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= span / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def percent_tick(fraction: float) -> str:
    """A tick of an axis of fractions, with a decimal only where it needs one."""
    return f"{fraction:.0%}" if abs(fraction * 100 - round(fraction * 100)) < 1e-6 else percent(fraction)


def _log_ticks(values: Sequence[float]) -> list[float]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**k for k in range(low, max(high, low + 1) + 1)]


def _ticks_at(values: Sequence[float], limit: int = 8) -> Sequence[float]:
    return values[:: max(1, math.ceil((len(values) - 1) / (limit - 1)))] if len(values) > limit else values
