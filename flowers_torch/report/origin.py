"""The sections about where a model comes from: photos, network, settings, and its card."""

from collections.abc import Sequence
from typing import Any

from flowers_torch.data.audit import Finding
from flowers_torch.models.classifier import Record
from flowers_torch.report.facts import Facts
from flowers_torch.report.markup import MOST_COMMAND, plural, preformatted, table, text
from flowers_torch.shell import repeat_command

DAMAGE = {3: "spoils the result", 2: "harms the result", 1: "worth a look"}


def data(
    facts: Facts,
    findings: Sequence[Finding],
    groups: Sequence[Sequence[Sequence[tuple[str, str]]]],
    sheet: Sequence[Sequence[str]],
) -> str:
    """Counts, what the check found, and what augmentation makes of photos.

    Args:
        facts: The run.
        findings: Of the check.
        groups: For each finding a few groups of (path, picture).
        sheet: Rows of pictures: a photo and its variants.
    """
    counts = ", ".join(f"{len(members):,} to {told}" for told, members in _parts(facts))
    blocks = [
        f"<p>{text(facts.data)}: {counts}. No photo is in two parts.</p>",
        "<h3>What the check found</h3>",
    ]
    if not findings:
        blocks.append("<p>Nothing.</p>")
    for finding, examples in zip(findings, groups, strict=True):
        shown = "".join(
            f'<figure><img src="{uri}" '
            f'alt=""><figcaption><small>{text(path, 80)}</small></figcaption></figure>'
            for group in examples
            for path, uri in group
            if uri
        )
        pictures = f'<div class="photos">{shown}</div>' if shown else ""
        blocks.append(
            f"<details><summary>{text(finding.what, 400)} <small>({DAMAGE[finding.damage]})</small></summary>"
            f"<p>{text(finding.todo, 400)}</p>{pictures}</details>"
        )
    if sheet:
        rows = ""
        for row in sheet:
            images = "".join(f'<img src="{uri}" alt="">' for uri in row)
            rows += f'<div class="sheet">{images}</div>'
        policy = facts.config["stages"][-1]["augment"]
        blocks.append(
            f"<h3>What training saw</h3><p>On the left a training photo, beside it what the augmentation "
            f"<code>{text(policy)}</code> of the last stage makes of it.</p>{rows}"
        )
    return "".join(blocks)


def network(record: Record, tables: Sequence[tuple[str, str]]) -> str:
    """The network and what trains in each stage."""
    size = record.preprocessing.size
    blocks = [
        f"<p>{text(record.arch)}, photos of {size} x {size} pixels, weights to begin with: "
        f"{text(record.weights)}.</p>"
    ]
    blocks += [f"<h3>Stage {text(name)}</h3>{preformatted(layers)}" for name, layers in tables]
    return "".join(blocks)


def repeat(facts: Facts) -> str:
    """The commands that repeat the run, its settings and the versions that it ran with."""
    again = repeat_command(facts.folder, "--out NEW")
    settings = {k: v for k, v in facts.config.items() if k not in ("stages", "model_options")}
    stages = facts.config.get("stages", [])
    names = list(dict.fromkeys(key for stage in stages for key in stage))
    stage_rows = [[text(name), *(_setting(stage.get(name, "")) for stage in stages)] for name in names]
    commands = f"<pre>{text(facts.command, MOST_COMMAND)}</pre>" if facts.command else ""
    folded = {
        "Stages": table(["", *("" for _ in stages)], stage_rows),
        "Other settings": _pairs(settings),
        "Versions and machine": _pairs(facts.environment),
    }
    return (
        "<p>As it was started, and as it can be repeated from the settings that it resolved "
        f"to:</p>{commands}"
        f"<pre>{text(again, MOST_COMMAND)}</pre>"
    ) + "".join(
        f"<details><summary>{title}</summary><div class=settings>{body}</div></details>"
        for title, body in folded.items()
    )


def model_card(facts: Facts, record: Record) -> str:
    """What anyone who is given the model should know."""
    scores = facts.scores()
    low, high = scores.interval()
    began = {"none": "random weights"}.get(record.weights, record.weights)
    rows = {
        "Task": f"names one of {len(record.classes)} classes for a photo",
        "Classes": ", ".join(record.classes),
        "Trained on": f"{facts.data}: {', '.join(f'{len(m):,} to {t}' for t, m in _parts(facts))}",
        "Network": f"{record.arch}, input {record.preprocessing.size} pixels",
        "Began with": began + (f" (licence of those weights: {record.licence})" if record.licence else ""),
        "Accuracy": (
            f"{scores.accuracy:.4f} on {plural(scores.photos, 'test photo')} "
            f"(95% interval {low:.3f} .. {high:.3f})"
        ),
        "Limits": (
            "It names one of its classes whatever a photo shows, unless asked with --max-error to "
            "say unsure. "
            "The numbers hold for photos like those it was tested on: other cameras, seasons or "
            "surroundings can "
            "be worse. It was not tested for decisions about people or health."
        ),
        "Licence": "within those of the photos and of the first weights, yours to choose",
    }
    return f"<div class=settings>{_pairs(rows)}</div>"


def _parts(facts: Facts) -> list[tuple[str, list[str]]]:
    names = {"train": "train on", "val": "validate", "test": "test"}
    return [(names[part], facts.split[part]) for part in names]


def _pairs(values: dict[str, Any]) -> str:
    return table(["", ""], [[text(key), _setting(value)] for key, value in values.items()])


def _setting(value: Any) -> str:
    return text("-" if value in ("", None, []) else value, 2000)
