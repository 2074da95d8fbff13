"""The files that a run leaves: what repeats it, its calibration and test, its predictions and its report."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from flowers_torch.config_file import to_toml
from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.quality.report import Finding, check_quality
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.splits.split_file import save_split
from flowers_torch.evaluation.advice import advise_on_training
from flowers_torch.evaluation.metrics import (
    Scores,
    describe_scores,
    describe_small_classes,
    fit_temperature,
    prediction_rows,
    score,
)
from flowers_torch.evaluation.prediction_sets import fit_thresholds
from flowers_torch.evaluation.predictions import Predictions, save_predictions
from flowers_torch.evaluation.projection import MAX_POINTS, project_features
from flowers_torch.evaluation.selective import REFERENCE_IMAGES, fit_ood_detector
from flowers_torch.files.atomic import write_csv, write_json, write_text
from flowers_torch.log import RESULT, log
from flowers_torch.models.checkpoint import ModelInfo, save_classifier
from flowers_torch.report.attempt import Attempt
from flowers_torch.report.image_sections import Source
from flowers_torch.report.page import write_report
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import Check
from flowers_torch.runs.folder import environment
from flowers_torch.runs.prediction import predict_indices, predict_validation
from flowers_torch.shell import command_line, repeat_command
from flowers_torch.training.checkpoint import MODEL_FILE, RunState

MAX_CHECKED = 20_000  # images up to which the report has the data-quality findings
SIMILAR_POOL = 4096  # training images among which the report searches similar ones, where their features are known


def write_provenance(experiment: Experiment, command: Sequence[str] | None) -> None:
    """Writes what repeats the run: resolved configuration, command, class names, versions, splits.

    `command` is what was typed; None stores the command that repeats the run from its configuration.
    """
    config, folder, dataset = experiment.config, experiment.folder, experiment.dataset
    repeat = repeat_command(folder)
    write_text(folder / "config.toml", to_toml(config, f"{dataset.name} with {config.arch}; repeat with: {repeat}"))
    write_text(folder / "command.txt", (command_line(*command) if command else repeat) + "\n")
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in dataset.classes))
    write_json(folder / "environment.json", environment())
    save_split(experiment.splits, dataset, folder / "split.json", config.seed, experiment.distributed.spread)
    if unreadable := experiment.filtered.unreadable:
        rows = [json.dumps({"file": path, "error": error}) for path, error in unreadable.items()]
        write_text(folder / "bad_files.jsonl", "\n".join(rows) + "\n")


def write_results(
    experiment: Experiment, model: nn.Module, state: RunState, check: Check = lambda images: None
) -> tuple[Scores, ModelInfo]:
    """Tests the best weights, which `model` holds, on images that decided nothing, and writes all about the run.

    Temperature, risk-coverage curve, prediction sets and out-of-distribution detector are fitted on validation and
    training images and stored in the weights file. Returns the test scores, and the model metadata with these.
    """
    folder, splits, stages = experiment.folder, experiment.splits, experiment.config.stages
    frozen = _ends_frozen(experiment)
    best_stage = next((stage for stage in stages if stage.name == state.best.get("stage")), stages[-1])
    validation = predict_validation(experiment, model, best_stage, check)
    info = _calibrate(experiment, model, validation, check, frozen)
    test = predict_indices(experiment, model, splits["test"], check, frozen)
    scores = score(test.logits / info.temperature, test.labels)
    if not experiment.distributed.is_main:
        return scores, info
    uncalibrated = score(test.logits, test.labels)
    save_classifier(model.state_dict(), info, folder / MODEL_FILE, best=state.best)
    log.log(RESULT, describe_scores(scores, info.classes))
    log.info(
        f"scaling  temperature {info.temperature:.2f}: probabilities are off by "
        f"{scores.calibration_error:.3f} on average, {uncalibrated.calibration_error:.3f} without it"
    )
    if warning := describe_small_classes(scores, info.classes):
        log.info(f"note     {warning}")
    _log_advice(experiment, state, info)
    paths = {name: [experiment.dataset.paths[i] for i in splits[name]] for name in ("val", "test")}
    mappable = test.features.numel() and len(test.labels) >= 4
    places = project_features(test.features[:: -(-len(test.labels) // MAX_POINTS)]) if mappable else None
    parts = {"val": (paths["val"], validation), "test": (paths["test"], test)}
    save_predictions(folder, info.classes, info.temperature, parts, places)
    rows = prediction_rows(paths["test"], test.logits / info.temperature, test.labels, info.classes)
    write_csv(folder / "predictions.csv", rows)
    write_csv(folder / "history.csv", state.history)
    metrics = {
        "best_epoch": state.best,
        "temperature": info.temperature,
        "uncalibrated": {name: getattr(uncalibrated, name) for name in ("loss", "brier", "calibration_error")},
        "test": scores.to_dict(info.classes),
        "changes": state.changes,
    }
    write_json(folder / "metrics.json", metrics)
    return scores, info


def _ends_frozen(experiment: Experiment) -> bool:
    """Whether the last stage froze the backbone, so that the features of its images are cached."""
    return bool(experiment.config.stages[-1].views_to_cache(len(experiment.splits["train"])))


def _calibrate(
    experiment: Experiment, model: nn.Module, validation: Predictions, check: Check, frozen: bool
) -> ModelInfo:
    """The model metadata with temperature, risk-coverage curve, prediction sets and out-of-distribution detector."""
    temperature = fit_temperature(validation.logits, validation.labels)
    probabilities = (validation.logits / temperature).softmax(1)
    detector = None
    if validation.features.numel():
        dataset, train = experiment.dataset, set(experiment.splits["train"])
        chosen = [index for index in sample_by_class(dataset, len(dataset)) if index in train][:REFERENCE_IMAGES]
        reference = predict_indices(experiment, model, chosen, check, frozen)
        detector = fit_ood_detector(reference.features, reference.labels, validation.features)
        if not math.isfinite(detector.threshold):  # as of networks that have hardly been trained
            log.info("note     unlike photos are not detected: the features are too large for half precision")
            detector = None
    selective = fit_thresholds(probabilities, validation.labels, detector)
    return dataclasses.replace(experiment.info, temperature=temperature, selective=selective)


def _log_advice(experiment: Experiment, state: RunState, info: ModelInfo) -> None:
    stages = [stage.settings() for stage in experiment.config.stages]
    how = (len(experiment.splits["val"]), info.weights != "none", experiment.config.mirror == "yes")
    for advice in advise_on_training(state.history, stages, len(info.classes), *how):
        command = repeat_command(experiment.folder, advice.flags) if advice.flags else ""
        log.info(f"try      {': '.join(filter(None, (advice.what, command)))}")


def write_run_report(experiment: Experiment, model: nn.Module, info: ModelInfo) -> Path:
    """Builds `report.html` from the run folder, with images and the findings of the check."""
    dataset, attempt = experiment.dataset, Attempt()
    is_small = len(dataset) <= MAX_CHECKED
    findings = attempt("the data check", lambda: _findings(experiment), []) if is_small else []
    frozen, alone = _ends_frozen(experiment), experiment.distributed.size == 1

    def features(indices: Sequence[int]) -> Tensor:
        return predict_indices(experiment, model, indices, from_features=frozen).features

    source = Source(dataset, findings, model, experiment.runtime, attempt, features if alone else None)
    if frozen:
        source = dataclasses.replace(source, similar_pool=SIMILAR_POOL)
    return write_report(experiment.folder, info, source)


def _findings(experiment: Experiment) -> list[Finding]:
    dataset, known = experiment.dataset, experiment.filtered.found
    return check_quality(dataset, inspect_images(dataset), experiment.splits, duplicates=known).findings
