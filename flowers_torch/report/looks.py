"""The sections that show photos: mistakes, sure and unsure ones, the map, doubtful labels."""

from collections.abc import Sequence

import torch

from flowers_torch.evaluation.probe import CurvePoint
from flowers_torch.report.charts import Point, Series, hue, line_chart, map_chart, percent_tick
from flowers_torch.report.facts import Facts
from flowers_torch.report.markup import MOST_COMMAND, percent, text
from flowers_torch.report.pictures import Seen
from flowers_torch.shell import command_line

ENDS = 8  # photos shown as surest and least sure


def told_of(facts: Facts, photo: int) -> str:
    """One line about a test photo: what it is and what it was named, with the probability."""
    confidence, guess = facts.probabilities[photo].max(0)
    label = int(facts.labels[photo])
    if int(guess) == label:
        return f"{facts.classes[label]}, {percent(float(confidence))} sure"
    return f"{facts.classes[label]}, named {facts.classes[int(guess)]} ({percent(float(confidence))} sure)"


def figure(facts: Facts, photo: int, embed: dict[int, str]) -> str:
    """A test photo with its caption; its picture is taken out of `embed`, to stand once in the page."""
    uri = embed.pop(photo, "")
    source = f' src="{uri}"' if uri else ""
    wrong = int(facts.probabilities[photo].argmax()) != int(facts.labels[photo])
    return (
        f'<figure><img data-photo="{photo}"{source} alt="{text(facts.paths[photo])}">'
        f"<figcaption><span{' class=bad' if wrong else ''}>{text(told_of(facts, photo))}</span><br>"
        f"<small>{text(facts.paths[photo], 80)}</small></figcaption></figure>"
    )


def mistakes(facts: Facts, worst: Sequence[int], seen: Sequence[Seen | None], embed: dict[int, str]) -> str:
    """The photos with the largest loss, with the places that spoke for the wrong and for the right class."""
    if not worst:
        return "<p>None of the test photos was named wrong.</p>"
    blocks, others = [], []
    for place, photo in enumerate(worst):
        look = seen[place] if place < len(seen) else None
        if look is None:
            others.append(figure(facts, photo, embed))
            continue
        guess, label = int(facts.probabilities[photo].argmax()), int(facts.labels[photo])
        trio = "".join(
            f'<div><img src="{uri}" alt="{text(alt)}">{text(caption, 60)}</div>'
            for uri, alt, caption in (
                (look.plain, facts.paths[photo], "as the network sees it"),
                (
                    look.for_predicted,
                    f"places that spoke for {facts.classes[guess]}",
                    f"for {facts.classes[guess]}",
                ),
                (
                    look.for_true,
                    f"places that spoke for {facts.classes[label]}",
                    f"for {facts.classes[label]}",
                ),
            )
        )
        blocks.append(
            f'<figure><div class="trio">{trio}</div><figcaption><span class="bad">'
            f"{text(told_of(facts, photo))}</span><br><small>{text(facts.paths[photo], 80)}</small>"
            "</figcaption></figure>"
        )
    explained = (
        "<p>Worst first: the photos that cost the model most. Yellow marks the places that spoke for a class "
        "(Grad-CAM). Look whether the label is right, whether the photo shows two classes, and "
        "whether the model "
        "looked at the subject at all.</p>"
    )
    more = f'<h3>More</h3><div class="photos">{"".join(others)}</div>' if others else ""
    return f'{explained}<div class="mistakes">{"".join(blocks)}</div>{more}'


def sure(facts: Facts, embed: dict[int, str]) -> str:
    """The photos that it was least and most sure of."""
    order = facts.probabilities.amax(1).argsort().tolist()
    least, most = order[:ENDS], order[::-1][:ENDS]
    return (
        '<h3>Least sure</h3><div class="photos">'
        + "".join(figure(facts, photo, embed) for photo in least)
        + '</div><h3>Surest</h3><div class="photos">'
        + "".join(figure(facts, photo, embed) for photo in most)
        + "</div>"
    )


def photo_map(facts: Facts) -> str:
    """The test photos by what the network sees in them."""
    places = facts.predictions.places
    if places is None:
        return ""
    predicted = facts.probabilities.argmax(1)
    shown = range(0, len(facts.paths), -(-len(facts.paths) // len(places)))  # every nth, where there are many
    points = [
        Point(x, y, int(facts.labels[i]), bool(predicted[i] == facts.labels[i]), i, told_of(facts, i))
        for i, (x, y) in zip(shown, places.tolist(), strict=True)
    ]
    legend = "".join(
        f'<button type="button" aria-pressed="false" data-label="{i}" '
        f'style="--hue:{hue(i, len(facts.classes))}">'
        f"{text(name, 40)}</button>"
        for i, name in enumerate(facts.classes)
    )
    return (
        "<p>Photos that lie close look alike to the network; far distances mean nothing. Ringed ones "
        "were named "
        "wrong. Choose a dot for its photo, a class to see it "
        f"alone.</p>{map_chart(points, len(facts.classes))}"
        f"<div class=legend>{legend}</div>"
    )


def insight(facts: Facts, pictures: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Suspect labels and the curve of more photos, where `flowers-torch insight` was run."""
    found = facts.insight
    if not found:
        command = command_line("flowers-torch", "insight", facts.folder.absolute())
        return (
            "<p>Are there photos in the wrong class, and would more photos help? This takes one pass "
            "over all photos:"
            f"</p><pre>{text(command, MOST_COMMAND)}</pre>",
            {},
        )
    points = [CurvePoint(**point) for point in found["curve"]]
    chart = line_chart(
        "Accuracy by number of training photos",
        [Series("", "b", [(p.photos, p.accuracy) for p in points], [(p.low, p.high) for p in points])],
        "training photos (a linear head on fixed features)",
        (min(p.low for p in points), 1.0),
        percent_tick,
        x_format="{:,.0f}".format,
    )
    rows = []
    for suspect in found["suspects"][:24]:
        uri = pictures.get(suspect["file"], "")
        picture = f'<img src="{uri}" alt="">' if uri else '<div class="none">no picture</div>'
        rows.append(
            f"<figure>{picture}<figcaption>labelled {text(suspect['label'], 60)}<br>looks like "
            f"<b>{text(suspect['looks_like'], 60)}</b> ({percent(suspect['probability'])})<br>"
            f"<small>{text(suspect['file'], 80)}</small></figcaption></figure>"
        )
    count = len(found["suspects"])
    suspects = f'<div class="photos">{"".join(rows)}</div>' if rows else ""
    return (
        f"<h3>Would more photos help?</h3><p>{text(found['more_photos'], 400)}.</p>"
        f'<div class="charts"><figure>{chart}</figure></div>'
        f"<h3>Labels to check: {count}</h3><p>A simple model that never saw these photos is as sure "
        "of another "
        "class as it usually is of that class's own photos. Some are honest doubts, some are wrong "
        "labels.</p>"
        f"{suspects}",
        {"more_photos": chart},
    )


def worst_photos(facts: Facts, most: int) -> list[int]:
    """Test photos that were named wrong, largest loss first."""
    wrong = facts.probabilities.argmax(1) != facts.labels
    own = facts.probabilities[torch.arange(len(facts.labels)), facts.labels]
    return [i for i in own.argsort().tolist() if wrong[i]][:most]
