"""Charts as inline SVG: drawn in units that fit a phone, coloured by the page's style sheet."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from flowers_torch.evaluation.calibration import Bin
from flowers_torch.report.markup import percent, text

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 52, 14, 34  # margins
STEEP = 40  # highest over lowest loss from which on their axis is logarithmic

# The style of charts that leave the page as files of their own; within the page its variables rule.
STYLE = (
    ".chart{font:11px system-ui,sans-serif;background:#fff}.chart text{fill:#444}.grid{stroke:#ddd}"
    ".axis{stroke:#888}.line{fill:none;stroke-width:2}.a{stroke:#8a8f98;fill:#8a8f98}"
    ".b{stroke:#2463c4;fill:#2463c4}.c{stroke:#b3541e;fill:#b3541e}.band{opacity:.18;stroke:none}"
    ".mark{stroke:#555;stroke-dasharray:2 3}.bar{fill:#2463c4;opacity:.75}"
    ".ideal{stroke:#888;stroke-dasharray:4 3}"
    ".line.a,.line.b,.line.c{fill:none}text.a,text.b,text.c{stroke:none}"
)


@dataclasses.dataclass(frozen=True)
class Series:
    """A line: its name, its colour (a, b or c) and its points; a band where low and high are given."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_limits: tuple[float, float] | None = None,
    y_format: Callable[[float], str] = "{:g}".format,
    marks: Sequence[tuple[float, str]] = (),
    x_format: Callable[[float], str] = "{:g}".format,
    x_ticks: Sequence[float] = (),
    log_y: bool = False,
) -> str:
    """Lines over a common x, labelled at their ends.

    Args:
        title: For people who cannot see it, and as its heading.
        series: At least one, with at least one point.
        x_label: Under the axis.
        y_limits: Of the axis; from the points if None.
        y_format: Of its ticks.
        marks: (x, label) of dotted upright lines.
        x_format: Of the ticks of x.
        x_ticks: Where they are; at some of the points if empty. The axis reaches from first to last.
        log_y: Logarithmic axis.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for s in series for pair in s.band for y in pair]
    if log_y:
        low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        ticks = [10.0**k for k in range(low, max(high, low + 1) + 1)]
    else:
        ticks = nice_ticks(*(y_limits or (min(ys), max(ys))))
    y_low, y_high = y_limits if y_limits and not log_y else (ticks[0], ticks[-1])
    x_ticks = x_ticks or _x_ticks(sorted(set(xs)))
    x_low, x_high = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])

    def scale(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * scale(x, x_low, x_high)

    def place_y(y: float) -> float:
        if log_y:
            share = scale(math.log10(y), math.log10(y_low), math.log10(y_high))
        else:
            share = scale(y, y_low, y_high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = []
    for tick in ticks:
        if y_low <= tick <= y_high:
            y = place_y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            label = text(y_format(tick))
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in x_ticks:
        label = text(x_format(tick))
        parts.append(f'<text x="{place_x(tick):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{text(x_label)}</text>')
    for number, (x, label) in enumerate(marks):
        at, line_y = place_x(x), TOP + 9 + 11 * number  # one below the other: stages may be short
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="small" x="{at + 3:.1f}" y="{line_y}">{text(label, 24)}</text>')
    taken: list[float] = []
    for s in sorted(series, key=lambda s: place_y(s.points[-1][1])):
        if s.band:
            upper = [
                f"{place_x(x):.1f},{place_y(hi):.1f}"
                for (x, _), (_, hi) in zip(s.points, s.band, strict=True)
            ]
            lower = [
                f"{place_x(x):.1f},{place_y(lo):.1f}"
                for (x, _), (lo, _) in zip(s.points, s.band, strict=True)
            ]
            parts.append(f'<polygon class="band {s.colour}" points="{" ".join(upper + lower[::-1])}"/>')
        line = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in s.points)
        parts.append(f'<polyline class="line {s.colour}" points="{line}"/>')
        if len(s.points) <= 30:
            parts += [
                f'<circle class="{s.colour}" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.5">'
                f"<title>{text(s.name)} {text(x_format(x))}: {text(y_format(y))}</title></circle>"
                for x, y in s.points
            ]
        x, y = s.points[-1]
        at = place_y(y) + 4
        while any(abs(at - other) < 12 for other in taken):  # names at the line's end must not overlap
            at += 1
        taken.append(at)
        parts.append(
            f'<text class="{s.colour}" x="{place_x(x) + 6:.1f}" y="{at:.1f}">{text(s.name, 12)}</text>'
        )
    return _svg(title, parts)


def reliability_chart(bins: Sequence[Bin], photos: int) -> str:
    """Stated probability against the share that was right; numbers say how many photos a bar stands on."""
    parts = []
    side_x, side_y = WIDTH - LEFT - 24, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + side_x * x, HEIGHT - BOTTOM - side_y * y

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(tick, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + side_x}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:.0%}</text>')
    for b in bins:
        x0, y0 = place(b.low, b.accuracy)
        x1, bottom = place(b.high, 0)
        told = f"said {b.confidence:.0%}, right {b.accuracy:.0%} of {b.photos}"
        # Bins of a few photos jump about; they are drawn paler.
        faint = "" if b.photos >= max(5, photos / 100) else " faint"
        parts.append(
            f'<rect class="bar{faint}" x="{x0 + 1:.1f}" y="{y0:.1f}" width="{x1 - x0 - 2:.1f}" '
            f'height="{bottom - y0:.1f}"><title>{text(told)}</title></rect>'
        )
        parts.append(
            f'<text class="small" x="{(x0 + x1) / 2:.1f}" y="{y0 - 3:.1f}" text-anchor="middle">'
            f"{b.photos}</text>"
        )
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts.append(f'<line class="ideal" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')
    middle = LEFT + side_x / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">probability that it states</text>'
    )
    return _svg("Share that was right (height) by stated probability; numbers are photos", parts)


def interval_bar(low: float, value: float, high: float) -> str:
    """A share with its interval, as a thin bar from 0 to 1."""
    return (
        '<svg class="bar-row" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="3" width="100" height="4"/>'
        f'<rect class="fill" x="0" y="3" width="{100 * value:.1f}" height="4"/>'
        f'<rect class="whisker" x="{100 * low:.1f}" y="0.5" height="9" '
        f'width="{max(0.6, 100 * (high - low)):.1f}"/>'
        "</svg>"
    )


@dataclasses.dataclass(frozen=True)
class Point:
    """A photo on the map."""

    x: float
    y: float
    label: int
    right: bool
    photo: int  # its number in the page
    told: str


def map_chart(points: Sequence[Point], classes: int) -> str:
    """Photos as dots, coloured by their class; a ring marks those that were named wrong."""
    width, height, margin = 720, 460, 14
    xs, ys = [p.x for p in points], [p.y for p in points]

    def place(value: float, low: float, high: float, size: int) -> float:
        return margin + (size - 2 * margin) * ((value - low) / (high - low) if high > low else 0.5)

    dots = []
    for p in sorted(points, key=lambda p: p.right, reverse=True):  # the wrong ones on top
        x = place(p.x, min(xs), max(xs), width)
        y = height - place(p.y, min(ys), max(ys), height)
        kind = "dot" if p.right else "dot wrong"
        dots.append(
            f'<circle class="{kind} k{p.label}" cx="{x:.1f}" cy="{y:.1f}" r="{5 if p.right else 7}" '
            f'data-photo-dot="{p.photo}" style="--hue:{hue(p.label, classes)}">'
            f"<title>{text(p.told)}</title></circle>"
        )
    return (
        f'<svg class="chart map" role="img" viewBox="0 0 {width} {height}" '
        f'aria-label="Map of {len(points)} photos by what the network sees in them">{"".join(dots)}</svg>'
    )


def hue(label: int, classes: int) -> int:
    """A colour for each class; neighbours in the list get hues far apart."""
    return round(360 * label * 0.381966 % 360) if classes > 8 else round(360 * label / classes)


def standalone(svg: str) -> str:
    """A chart as a file of its own."""
    opening, rest = svg.split(">", 1)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{opening} xmlns="http://www.w3.org/2000/svg" '
        f'width="{2 * WIDTH}" height="{2 * HEIGHT}"><style>{STYLE}</style>{rest}\n'
    )


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low .. high, about `count` of them."""
    span = high - low or abs(high) or 1.0
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _x_ticks(values: Sequence[float], most: int = 8) -> list[float]:
    if len(values) <= most:
        return list(values)
    step = math.ceil((len(values) - 1) / (most - 1))
    return list(values[::step])


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{text(title)}">'
        f"<title>{text(title)}</title>{''.join(parts)}</svg>"
    )


def history_charts(history: Sequence[dict[str, float]], stages: Sequence[str]) -> dict[str, str]:
    """Loss, accuracy and learning rate over the epochs; a dotted line where a stage begins.

    Args:
        history: Rows of history.csv.
        stages: For the marks: what is said where a stage begins, by the stage's name.
    """
    told = dict(zip(dict.fromkeys(row["stage"] for row in history), stages, strict=False))
    marks = [
        (number + 0.5 if number else 1.0, told.get(row["stage"], str(row["stage"])))
        for number, row in enumerate(history)
        if number == 0 or row["stage"] != history[number - 1]["stage"]
    ]
    epochs = range(1, len(history) + 1)

    def line(name: str, key: str, colour: str) -> Series:
        values = [(e, row[key]) for e, row in zip(epochs, history, strict=True) if row[key] is not None]
        return Series(name, colour, [(e, value) for e, value in values if math.isfinite(value)])

    losses = [line("train", "train_loss", "a"), line("val", "val_loss", "b")]
    losses = [s for s in losses if s.points]  # a loss may never have been finite
    accuracies = [line("train", "train_accuracy", "a"), line("val", "val_accuracy", "b")]
    lowest = min(y for s in accuracies for _, y in s.points)
    heights = [y for s in losses for _, y in s.points]
    steep = bool(heights) and min(heights) > 0 and max(heights) > STEEP * min(heights)
    charts = {"loss": line_chart("Loss", losses, "epoch", marks=marks, log_y=steep)} if losses else {}
    charts["accuracy"] = line_chart(
        "Accuracy", accuracies, "epoch", (math.floor(lowest * 10) / 10, 1.0), percent_tick, marks
    )
    if any(row["lr"] for row in history):
        rates = [line("lr", "lr", "c")]
        charts["rate"] = line_chart(
            "Learning rate at the start of each epoch",
            rates,
            "epoch",
            y_format="{:.0e}".format,
            marks=marks,
            x_ticks=_x_ticks(epochs),
            log_y=True,
        )
    return charts


def percent_tick(share: float) -> str:
    """A tick of an axis of shares."""
    return f"{share:.0%}" if abs(share * 100 - round(share * 100)) < 1e-6 else percent(share)
