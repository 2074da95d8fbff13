"""`report.html`: everything about a run in one file that opens anywhere, offline."""

import dataclasses
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from flowers_torch import __version__
from flowers_torch.data.audit import Finding
from flowers_torch.data.folder import Photos
from flowers_torch.data.preview import choose_photos
from flowers_torch.errors import printable
from flowers_torch.evaluation.diagnosis import Advice, diagnose
from flowers_torch.files import write_text
from flowers_torch.models.classifier import Record
from flowers_torch.models.freeze import apply_rules, decay_by_layer, freeze_table, rules_for, set_train_mode
from flowers_torch.report import looks, origin, sections
from flowers_torch.report.charts import standalone
from flowers_torch.report.facts import Facts, read_facts
from flowers_torch.report.markup import script_json, text
from flowers_torch.report.pictures import Seen, augmentation_sheet, seen_by, thumbnails
from flowers_torch.training.runtime import Runtime

REPORT_FILE = "report.html"
WORST = 24  # mistakes shown
LOOKED_INTO = 6  # of them with their maps of influence
MOST_PICTURES = 320  # of test photos; a set with more shows its mistakes and a few of each class
EXAMPLES = 3  # groups of photos shown of a finding of the check

# No source but the file itself: a browser refuses any request that a flaw might smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Source:
    """What a report shows besides the run folder: its photos and its network."""

    photos: Photos
    findings: Sequence[Finding]
    model: nn.Module
    runtime: Runtime


def write_report(folder: Path, record: Record, source: Source | None) -> Path:
    """Writes `report.html` and `figures/*.svg` into a run folder.

    Args:
        folder: Of a finished run.
        record: Of its network.
        source: Photos and network; None where the photos are gone, which leaves a report without pictures.

    Raises:
        DataError: not a finished run.
    """
    facts = read_facts(folder)
    worst = looks.worst_photos(facts, WORST)
    shown = _choose_pictures(facts, worst)
    embed: dict[int, str] = {}
    seen: list[Seen | None] = []
    if source:
        root = source.photos.root
        made = thumbnails([root / facts.paths[photo] for photo in shown])
        embed = {photo: uri for photo, uri in zip(shown, made, strict=True) if uri}
        few = worst[:LOOKED_INTO]
        guesses = facts.probabilities.argmax(1)
        seen = seen_by(
            source.model,
            record.preprocessing,
            source.runtime,
            [root / facts.paths[photo] for photo in few],
            [int(guesses[photo]) for photo in few],
            [int(facts.labels[photo]) for photo in few],
        )
    pictured = set(embed)
    cells_html, members = sections.confusion(facts)
    learning_html, charts = sections.learning(facts)
    trust_html, trust_charts = sections.trust(facts)
    insight_html, insight_charts = looks.insight(facts, _suspects(facts, source))
    parts = [
        ("summary", "Summary", sections.summary(facts, advise(facts, record))),
        ("learning", "Learning", learning_html),
        ("classes", "Classes", sections.class_table(facts)),
        ("confusion", "Confusion", cells_html),
        ("mistakes", "Mistakes", looks.mistakes(facts, worst, seen, embed)),
        ("sure", "Sure and unsure", looks.sure(facts, embed)),
        ("trust", "Trust", trust_html),
        ("map", "Map", looks.photo_map(facts)),
        ("insight", "Insight", insight_html),
        ("data", "Data", _data(facts, source)),
        ("network", "Network", origin.network(record, _tables(facts, source))),
        ("repeat", "Repeat", origin.repeat(facts)),
        ("card", "Model card", origin.model_card(facts, record)),
    ]
    listed = {
        photo: {
            "src": embed.get(photo, ""),  # empty where a section shows it
            "file": printable(facts.paths[photo]),  # the page sets these as text, never as HTML
            "told": printable(looks.told_of(facts, photo)),
            "wrong": int(facts.probabilities[photo].argmax()) != int(facts.labels[photo]),
        }
        for photo in range(len(facts.paths))
        if photo in pictured or photo in shown or len(facts.paths) <= MOST_PICTURES
    }
    cells = {cell: [p for p in photos if p in listed] for cell, photos in members.items()}
    write_text(folder / REPORT_FILE, _page(facts, record, parts, listed, cells))
    for name, svg in (charts | trust_charts | insight_charts).items():
        write_text(folder / "figures" / f"{name}.svg", standalone(svg))
    return folder / REPORT_FILE


def advise(facts: Facts, record: Record) -> list[Advice]:
    """What the history says is worth trying."""
    stages = facts.config.get("stages", [])
    return diagnose(
        facts.history, stages, len(facts.classes), len(facts.split["val"]), record.weights != "none"
    )


def _page(
    facts: Facts,
    record: Record,
    parts: Sequence[tuple[str, str, str]],
    photos: dict[int, dict[str, object]],
    cells: dict[str, list[int]],
) -> str:
    filled = [(key, title, body) for key, title, body in parts if body]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in filled)
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{body}</section>'
        for key, title, body in filled
    )
    title = f"{facts.data} with {record.arch}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_file('report.css')}</style></head><body>"
        f"<header><div><h1>{text(facts.data)}<small>{text(record.arch)}, {len(facts.classes)} classes, "
        f"{text(facts.made)}, run {text(facts.folder.name)}</small></h1></div></header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{bodies}</main>'
        '<dialog id="dialog" aria-labelledby="dialog-title"><form '
        'method="dialog"><button>Close</button></form>'
        '<h2 id="dialog-title"></h2><p class="soft"></p><div class="photos"></div></dialog>'
        f"<footer>Made by flowers_torch {__version__}. This file needs no network and sends nothing.</footer>"
        f'<script type="application/json" id="photos">{script_json(photos)}</script>'
        f'<script type="application/json" id="cells">{script_json(cells)}</script>'
        f"<script>{_file('report.js')}</script></body></html>\n"
    )


def _file(name: str) -> str:
    return (importlib.resources.files("flowers_torch.report") / name).read_text(encoding="utf-8")


def _choose_pictures(facts: Facts, worst: Sequence[int]) -> list[int]:
    """Test photos that get a picture: mistakes, the surest and least sure, then every class in turn."""
    order = facts.probabilities.amax(1).argsort().tolist()
    chosen = dict.fromkeys([*worst, *order[: looks.ENDS], *order[::-1][: looks.ENDS]])
    turn: dict[int, int] = {}
    turns = []
    for photo, label in enumerate(facts.labels.tolist()):
        turn[label] = turn.get(label, 0) + 1
        turns.append((turn[label], label, photo))
    chosen |= dict.fromkeys(photo for _, _, photo in sorted(turns))
    return list(chosen)[:MOST_PICTURES]


def _suspects(facts: Facts, source: Source | None) -> dict[str, str]:
    if source is None:
        return {}
    names = [suspect["file"] for suspect in facts.insight.get("suspects", [])[:24]]
    return dict(zip(names, thumbnails([source.photos.root / name for name in names]), strict=True))


def _data(facts: Facts, source: Source | None) -> str:
    if source is None:
        return origin.data(facts, [], [], [])
    photos = source.photos
    groups = []
    for finding in source.findings:
        few = [group[:2] for group in finding.groups[:EXAMPLES]]
        names = [[photos.paths[i] for i in group] for group in few]
        made = [thumbnails([photos.root / name for name in group]) for group in names]
        groups.append([list(zip(n, m, strict=True)) for n, m in zip(names, made, strict=True)])
    train = set(facts.split["train"])
    order = [photos.paths[i] for i in choose_photos(photos, min(len(photos), 64)) if photos.paths[i] in train]
    sheet = []
    if facts.config.get("stages"):
        size = facts.config.get("size") or 224
        policy = facts.config["stages"][-1]["augment"]
        sheet = augmentation_sheet([photos.root / name for name in order[:3]], policy, size)
    return origin.data(facts, source.findings, groups, sheet)


def _tables(facts: Facts, source: Source | None) -> list[tuple[str, str]]:
    """What trains in each stage, as training printed it; the network's modes are put back."""
    if source is None:
        return []
    model = source.model
    thawed = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    found = []
    for stage in facts.config.get("stages", []):
        rules = [(pattern, rate) for pattern, rate in stage.get("rules", [])] or rules_for(
            model, stage["train"]
        )
        groups = decay_by_layer(apply_rules(model, rules), stage.get("layer_decay", 1.0))
        set_train_mode(model, stage.get("batch_norm", "trained"))
        found.append((stage["name"], freeze_table(model, groups, stage.get("lr"))))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(thawed[name])
    model.eval()
    return found
