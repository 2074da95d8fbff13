"""The sections about results in numbers: what the model can do, where it fails, how far to trust it."""

from collections.abc import Sequence

from flowers_torch.evaluation.calibration import reliability
from flowers_torch.evaluation.diagnosis import Advice
from flowers_torch.evaluation.metrics import FEW_PHOTOS, wilson
from flowers_torch.evaluation.summary import weakest_class
from flowers_torch.evaluation.unsure import trade_off
from flowers_torch.report.charts import (
    Series,
    history_charts,
    interval_bar,
    line_chart,
    percent_tick,
    reliability_chart,
)
from flowers_torch.report.facts import Facts
from flowers_torch.report.markup import MOST_COMMAND, percent, plural, table, text
from flowers_torch.shell import command_line, repeat_command

MATRIX_CLASSES = 40  # with more the matrix is a list of the commonest confusions


def summary(facts: Facts, advice: Sequence[Advice]) -> str:
    """What the model can do, in plain words, and what to do next."""
    scores = facts.scores()
    low, high = scores.interval()
    wrong = scores.photos - scores.correct
    lead = (
        f"Shown {plural(scores.photos, 'photo')} that it had never seen, the model named "
        f"<b>{scores.correct:,} right</b>" + (f" and {wrong:,} wrong." if wrong else ".")
    )
    caution = (
        f"{scores.photos:,} photos are a sample: for new photos of the same kind, expect between "
        f"<b>{percent(low)}</b> and <b>{percent(high)}</b> (95% interval)."
    )
    parts = [f'<p class="lead">{lead}</p><p>{caution}</p>']
    weakest = weakest_class(scores)
    if weakest:
        label, other = weakest
        right, of = int(scores.confusion[label, label]), int(scores.supports()[label])
        parts.append(
            f"<p>Hardest for it is <b>{text(facts.classes[label])}</b>: {right} of {of} recognised, "
            f"{'the other' if of - right == 1 else 'the others mostly'} taken for "
            f"{text(facts.classes[other])}.</p>"
        )
    small = scores.small_classes()
    if small:
        parts.append(
            f'<div class="advice warning"><p><b>{plural(len(small), "class")}</b> of '
            f"{len(facts.classes)} had "
            f"fewer than {FEW_PHOTOS} test photos. What is said of them alone can be luck.</p></div>"
        )
    for item in advice:
        command = repeat_command(facts.folder, f"--out NEW {item.flags}")
        parts.append(
            '<div class="advice"><p><b>Worth trying.</b> '
            f"{text(item.what[0].upper() + item.what[1:], 400)}.</p>"
            + (f"<pre>{text(command, MOST_COMMAND)}</pre>" if item.flags else "")
            + "</div>"
        )
    use = command_line("flowers-torch", "predict", facts.folder.absolute(), "PHOTO...")
    parts.append(f"<h3>Use it</h3><pre>{text(use, MOST_COMMAND)}</pre>")
    bar = interval_bar(low, scores.accuracy, high)
    return (
        f'<div class="hero"><div><div class="figure">{percent(scores.accuracy)}</div>'
        f'<div class="soft">accuracy on the test photos</div><div class="interval">{bar}'
        f"<div><span>0%</span><span>interval {percent(low)} .. {percent(high)}</span><span>100%</span></div>"
        "</div></div>"
        f"<div>{''.join(parts)}</div></div>"
    )


def learning(facts: Facts) -> tuple[str, dict[str, str]]:
    """Curves by stage, and the same charts by name."""
    if not facts.history:
        return "", {}
    stages = [f"{stage['name']}: {stage['train']}" for stage in facts.config.get("stages", [])]
    charts = history_charts(facts.history, stages)
    names = {"loss": "Loss", "accuracy": "Accuracy", "rate": "Learning rate"}
    figures = "".join(
        f"<figure><figcaption><b>{names[key]}</b></figcaption>{svg}</figure>" for key, svg in charts.items()
    )
    best = facts.metrics.get("best_epoch", {})
    said = (
        f"Kept are the weights after epoch {best.get('epoch')} of stage {text(best.get('stage'))}, where the "
        "calibrated validation loss was least. "
        * bool(best)
        + "A dotted line is where a stage begins, with the part of the network that trains from there on."
    )
    return f'<p>{said}</p><div class="charts">{figures}</div>', charts


def class_table(facts: Facts) -> str:
    """Recall with its interval, precision and F1 of each class, weakest first."""
    scores = facts.scores()
    recalls, precisions, f1s = (v.tolist() for v in (scores.recalls(), scores.precisions(), scores.f1s()))
    supports, hits = scores.supports().tolist(), scores.confusion.diag().tolist()
    order = sorted(
        (i for i in range(len(facts.classes)) if supports[i]), key=lambda i: (recalls[i], f1s[i], i)
    )
    rows = []
    for i in order:
        few = " *" if supports[i] < FEW_PHOTOS else ""
        low, high = wilson(hits[i], supports[i])
        rows.append(
            [
                text(facts.classes[i], 60),
                interval_bar(low, recalls[i], high),
                f"{hits[i]} of {supports[i]}{few}",
                percent(recalls[i]),
                percent(precisions[i]),
                f"{f1s[i]:.3f}",
            ]
        )
    header = ["class", "recognised (95% interval)", "photos", "recall", "precision", "F1"]
    averages = scores.averages()
    note = (
        f"<p>Mean over classes: recall {percent(averages['macro']['recall'])}, precision "
        f"{percent(averages['macro']['precision'])}, F1 {averages['macro']['f1']:.3f}."
        + (f" * fewer than {FEW_PHOTOS} photos." if scores.small_classes() else "")
        + "</p>"
    )
    explained = (
        "<p>Recall: of the photos of a class, how many were recognised. Precision: of the photos "
        "named so, how "
        "many are. The shaded stretch is where the recall of many more photos would probably lie.</p>"
    )
    return f'{explained}<div class="wide">{table(header, rows, 4)}</div>{note}'


def confusion(facts: Facts) -> tuple[str, dict[str, list[int]]]:
    """The confusion matrix, whose cells open the photos; which photos are in which cell."""
    predicted = facts.probabilities.argmax(1).tolist()
    members: dict[str, list[int]] = {}
    for photo, (label, guess) in enumerate(zip(facts.labels.tolist(), predicted, strict=True)):
        members.setdefault(f"{label},{guess}", []).append(photo)
    counts = facts.scores().confusion
    if len(facts.classes) > MATRIX_CLASSES:
        worst = sorted((c for c in members if len(set(c.split(","))) == 2), key=lambda c: -len(members[c]))
        rows = []
        for cell in worst[:60]:
            label, guess = map(int, cell.split(","))
            title = f"{facts.classes[label]}, named {facts.classes[guess]}"
            rows.append(
                [
                    text(facts.classes[label]),
                    text(facts.classes[guess]),
                    _cell(cell, title, len(members[cell]), 0.5, True),
                ]
            )
        body = table(["is", "was named", "photos"], rows, 1).replace("<table>", '<table class="matrix">')
        return f"<p>The commonest confusions; each opens its photos.</p>{body}", members
    head = "".join(
        f'<th scope="col"><span title="{text(n)}">{text(n, 40)}</span></th>' for n in facts.classes
    )
    rows_html = []
    for label, name in enumerate(facts.classes):
        total = max(1, int(counts[label].sum()))
        row = []
        for guess in range(len(facts.classes)):
            cell, count = f"{label},{guess}", int(counts[label, guess])
            if not count:
                row.append("<td><i></i></td>")
                continue
            other = facts.classes[guess]
            title = f"{name}, recognised" if guess == label else f"{name}, named {other}"
            row.append(f"<td>{_cell(cell, title, count, count / total, guess != label)}</td>")
        rows_html.append(f'<tr><th scope="row" title="{text(name)}">{text(name, 40)}</th>{"".join(row)}</tr>')
    matrix = (
        f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows_html)}</tbody></table></div>"
    )
    return (
        "<p>Rows are what the photos show, columns what they were named. Choose a cell to see its "
        "photos; arrow "
        f"keys go from cell to cell.</p>{matrix}",
        members,
    )


def _cell(cell: str, title: str, count: int, share: float, miss: bool) -> str:
    return (
        f'<button type="button" data-cell="{cell}" title="{text(title)}" aria-label="{text(title)}: {count}" '
        f'style="--share:{share:.3f}"{" class=miss" if miss else ""}>{count}</button>'
    )


def trust(facts: Facts) -> tuple[str, dict[str, str]]:
    """Whether stated probabilities come true, and what saying "I don't know" would save."""
    scores = facts.scores()
    confidence, predicted = facts.probabilities.max(1)
    right = predicted == facts.labels
    bins = reliability(confidence, right)
    charts = {"reliability": reliability_chart(bins, scores.photos)}
    before = facts.metrics.get("uncalibrated", {})
    said = f"On average what it states is off by {percent(scores.calibration_error)}"
    if before:
        heat = facts.predictions.temperature
        without = percent(before["calibration_error"])
        said += f" (it would be {without} without the temperature of {heat:.2f} found in validation)"
    curve = trade_off(confidence, right)
    points = [(answered / scores.photos, wrong / answered) for _, answered, wrong in curve]
    charts["unsure"] = line_chart(
        "Share of wrong answers, by share of photos answered",
        [Series("errors", "b", points)],
        "share of photos that it answers, surest first",
        (0.0, max(0.01, *(y for _, y in points)) * 1.1),
        percent_tick,
        x_format=percent_tick,
        x_ticks=(0.0, 0.25, 0.5, 0.75, 1.0),
    )
    ask = command_line("flowers-torch", "predict", facts.folder.absolute(), "PHOTO...", "--max-error", "1%")
    return (
        f"<p>{said}. Bars at the dashed line mean: when it says 80%, it is right 80% of the time.</p>"
        '<div class="charts">'
        f"<figure><figcaption><b>Stated and come true</b></figcaption>{charts['reliability']}</figure>"
        "<figure><figcaption><b>Errors if it answers only what it is sure of</b></figcaption>"
        f"{charts['unsure']}</figure></div>"
        "<p>Let it say <i>unsure</i> rather than err: the probability to ask for is chosen in validation.</p>"
        f"<pre>{text(ask, MOST_COMMAND)}</pre>",
        charts,
    )
