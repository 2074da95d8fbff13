"""`report.html`: everything about a run in one file that opens anywhere, offline."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowers_torch import __version__
from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.report import Finding
from flowers_torch.evaluation.advice import advise_on_training
from flowers_torch.evaluation.metrics import FEW_IMAGES
from flowers_torch.evaluation.summary import weakest_class
from flowers_torch.files.atomic import write_text
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.report import image_sections, performance, provenance
from flowers_torch.report.charts import history_charts, standalone
from flowers_torch.report.run_summary import RunSummary, read_run
from flowers_torch.report.templating import render
from flowers_torch.training.device import Runtime

REPORT_FILE = "report.html"
EXAMPLES = 3  # groups of photos shown for a finding of the check
LABEL_ISSUES = 24  # shown


@dataclasses.dataclass(frozen=True)
class Source:
    """What a report shows besides the run folder: its photos and its network."""

    dataset: ImageDataset
    findings: Sequence[Finding]
    model: nn.Module
    runtime: Runtime


def write_report(folder: Path, info: ModelInfo, source: Source | None) -> Path:
    """Writes `report.html` and `figures/*.svg` into a run folder; without a source the pictures are left out.

    Raises:
        DataError: not a finished run.
    """
    run = read_run(folder)
    stages = [f"{stage['name']}: {stage['train']}" for stage in run.stages]
    charts = (
        (history_charts(run.history, stages) if len(run.history) > 1 else {})
        | performance.calibration_charts(run)
        | performance.learning_curve_chart(run)
    )
    cells = performance.confusion_cells(run)
    values: dict[str, Any] = {
        "run": run,
        "info": info,
        "version": __version__,
        "charts": charts,
        "weakest": weakest_class(run.scores),
        "few_photos": FEW_IMAGES,
        "advice": advise_on_training(
            run.history, run.stages, len(run.classes), len(run.split["val"]), info.weights != "none"
        ),
        "class_rows": performance.class_rows(run),
        "confusion_rows": performance.confusion_rows(run, cells),
        "dots": image_sections.map_dots(run),
        "hues": image_sections.hues(len(run.classes)),
        "split_counts": provenance.split_counts(run),
        "settings": provenance.settings(run),
        "model_card": provenance.model_card(info, run),
    }
    values |= _test_images(run, info, source, cells) | _other_images(run, source)
    write_text(folder / REPORT_FILE, render("report.html.jinja", values))
    for name, chart in charts.items():
        write_text(folder / "figures" / f"{name}.svg", standalone(chart))
    return folder / REPORT_FILE


def _test_images(
    run: RunSummary, info: ModelInfo, source: Source | None, cells: dict[str, list[int]]
) -> dict[str, Any]:
    """Figures of the test photos. Each picture is in the page once: in a section or in the script's list."""
    mistakes, (least, most) = image_sections.mistakes(run), image_sections.extremes(run)
    chosen = image_sections.choose_pictured(run)
    pictures: dict[int, str] = {}
    cams: dict[int, dict[str, str]] = {}
    if source:
        root = source.dataset.root
        made = image_sections.thumbnails([root / run.paths[index] for index in chosen])
        pictures = dict(zip(chosen, made, strict=True))
        explained = mistakes[: image_sections.EXPLAINED]
        cams = image_sections.grad_cams(run, explained, root, source.model, info.preprocessing, source.runtime)

    def figures(members: Sequence[int]) -> list[image_sections.Figure]:
        return [image_sections.figure(run, index, pictures.pop(index, "")) for index in members]

    shown = {
        "explained": [(image_sections.figure(run, index), cam) for index, cam in cams.items()],
        "mistakes": figures([index for index in mistakes if index not in cams]),
        "least_confident": figures(least),
        "most_confident": figures(most),
    }
    members = range(len(run.paths)) if len(run.paths) <= image_sections.TEST_PICTURES else sorted(chosen)
    listed = {index: image_sections.figure(run, index, pictures.get(index, "")) for index in members}
    return shown | {
        "listed": {index: dataclasses.asdict(figure) for index, figure in listed.items()},
        "cells": {key: [index for index in cell if index in listed] for key, cell in cells.items()},
    }


def _other_images(run: RunSummary, source: Source | None) -> dict[str, Any]:
    """Label issues, findings of the check, augmented photos and what trained, as far as there are photos."""
    issues = run.label_issues.get("label_issues", [])[:LABEL_ISSUES]
    if source is None:
        empty: dict[str, Any] = {"findings": [], "augmented": [], "freeze_tables": {}}
        return empty | {"label_issues": [(issue, "") for issue in issues]}
    data, root = source.dataset, source.dataset.root
    findings = []
    for finding in source.findings:
        names = [data.paths[i] for group in finding.groups[:EXAMPLES] for i in group[:2]]
        thumbnails = image_sections.thumbnails([root / name for name in names])
        findings.append((finding, list(zip(names, thumbnails, strict=True))))
    train = set(run.split["train"])
    candidates = [data.paths[i] for i in sample_by_class(data, min(len(data), 64))]
    examples = [root / path for path in candidates if path in train][:3]
    augmented = []
    if run.stages:
        augmentation, size = run.stages[-1]["augment"], run.config.get("size") or 224
        augmented = image_sections.augmentation_sheet(examples, augmentation, size)
    pictures = image_sections.thumbnails([root / issue["file"] for issue in issues])
    return {
        "findings": findings,
        "augmented": augmented,
        "freeze_tables": provenance.freeze_tables(run.stages, source.model),
        "label_issues": list(zip(issues, pictures, strict=True)),
    }
