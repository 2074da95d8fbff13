"""From the best weights to a finished run folder: calibration, test, and the files that hold the results."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowers_torch.config import load_config, with_absolute_paths
from flowers_torch.data.quality.report import check_quality
from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.splits.split_file import load_split
from flowers_torch.errors import DataError, printable
from flowers_torch.evaluation.predictions import Predictions, save_predictions
from flowers_torch.evaluation.calibration import fit_temperature
from flowers_torch.evaluation.advice import advise_on_training
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.projection import MOST, map_images
from flowers_torch.evaluation.summary import describe_scores, describe_small_classes, prediction_rows
from flowers_torch.evaluation.selective import REFERENCE_PHOTOS, fit_ood_detector, pack_selective, risk_coverage_curve
from flowers_torch.files.atomic import write_csv, write_json
from flowers_torch.runs.feature_cache import stored_part
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, save_classifier
from flowers_torch.runs.experiment import Run, open_filtered, part_batches, photos_of, predict_part
from flowers_torch.report.page import Source, write_report
from flowers_torch.shell import repeat_command
from flowers_torch.training.checkpoint import MODEL_FILE
from flowers_torch.log import RESULT, log
from flowers_torch.training.runtime import runtime_of_run

MOST_CHECKED = 20_000  # photos whose check, remembered from before training, is shown in the report


def answer(run: Run, part: str, after_batch: Callable[[int], Any] = lambda photos: None) -> Predictions:
    """The network's answers to the photos of a part."""
    if run.pooled and (stored := stored_part(run, run.pooled, part, after_batch)):
        return predict_part(run, part, run.pooled.tail, stored, after_batch)
    return predict_part(run, part, run.answering(), part_batches(run, part), after_batch)


def write_results(
    run: Run,
    history: list[dict[str, Any]],
    best: dict[str, Any],
    changes: list[dict[str, Any]],
    after_batch: Callable[[int], Any] = lambda photos: None,
) -> Scores:
    """Tests the best weights once, on photos that decided nothing, and writes all that came of the run.

    What is fitted here (the temperature, the limits of what the model knows) is fitted on validation and
    training photos and written into the weights file.

    Args:
        run: Its network has the best weights.
        history: A row for each epoch.
        best: The row of the best one.
        changes: What was changed on the way, where a run went on with other options.
        after_batch: Called with the number of photos of each batch that is answered.
    """
    validation = run.best_answers or answer(run, "val", after_batch)
    run.info = calibrate(run, validation, after_batch)
    answers = answer(run, "test", after_batch)
    temperature = run.info.temperature
    logits, labels, classes = answers.logits / temperature, answers.labels, run.photos.classes
    test, before = score(logits, labels), score(answers.logits, labels)
    if not run.world.is_main:
        return test
    save_classifier(run.model.state_dict(), run.info, run.folder / MODEL_FILE, best=best)
    log.log(RESULT, describe_scores(test, classes))
    log.info(
        f"trust    probabilities at temperature {temperature:.2f}: they are off by "
        f"{test.calibration_error:.3f} on average, {before.calibration_error:.3f} without it"
    )
    if warning := describe_small_classes(test, classes):
        log.info(f"note     {warning}")
    stages = [stage.settings() for stage in run.config.stages]
    val_photos, pretrained = len(run.split["val"]), run.info.weights != "none"
    for advice in advise_on_training(history, stages, len(classes), val_photos, pretrained):
        command = repeat_command(run.folder, advice.flags) if advice.flags else ""
        log.info(f"try      {': '.join(filter(None, (advice.what, command)))}")
    parts = {"val": validation, "test": answers}
    paths = {part: [run.photos.paths[index] for index in run.split[part]] for part in parts}
    mappable = answers.features.numel() and 4 <= len(labels)
    places = map_images(answers.features[:: -(-len(labels) // MOST)]) if mappable else None
    kept = {part: (paths[part], parts[part]) for part in parts}
    save_predictions(run.folder, classes, temperature, kept, places)
    write_csv(run.folder / "predictions.csv", prediction_rows(paths["test"], logits, labels, classes))
    write_csv(run.folder / "history.csv", history)
    write_json(
        run.folder / "metrics.json",
        {
            "best_epoch": best,
            "temperature": temperature,
            "uncalibrated": {
                "loss": before.loss,
                "brier": before.brier,
                "calibration_error": before.calibration_error,
            },
            "test": test.to_dict(classes),
            "changes": changes,
        },
    )
    return test


def calibrate(
    run: Run, validation: Predictions, after_batch: Callable[[int], Any] = lambda photos: None
) -> ModelInfo:
    """The run's record with its temperature, its trade-off of errors and what it holds for familiar."""
    temperature = fit_temperature(validation.logits, validation.labels)
    confidence, predicted = (validation.logits / temperature).softmax(1).max(1)
    curve = risk_coverage_curve(confidence, predicted == validation.labels)
    familiar = None
    if validation.features.numel():
        train = set(run.split["train"])
        chosen = [index for index in sample_by_class(run.photos, len(run.photos)) if index in train]
        few = dataclasses.replace(run, split={"reference": chosen[:REFERENCE_PHOTOS]})
        reference = answer(few, "reference", after_batch)
        familiar = fit_ood_detector(reference.features, reference.labels, validation.features)
    return dataclasses.replace(run.info, temperature=temperature, selective=pack_selective(curve, familiar))


def report(run: Run) -> Path:
    """Builds `report.html` from the run folder, with pictures and the findings of the check."""
    findings = []
    if len(run.photos) <= MOST_CHECKED:
        inspections = inspect_images(run.photos)
        findings = check_quality(run.photos, inspections, run.split, duplicates=run.duplicates or None).findings
    return write_report(run.folder, run.info, Source(run.photos, findings, run.model, run.runtime))


def open_run(folder: Path, device: str = "auto", data: str = "") -> Run:
    """A finished run as it was: configuration, photos, split, and the network with its best weights.

    Args:
        folder: The run folder.
        device: Where to compute.
        data: The place of its photos now; empty where they have not moved.

    Raises:
        DataError: not a run folder, or its photos are no longer there or have changed.
        ModelFileError: no weights, or damaged ones.
    """
    if not (folder / "config.toml").is_file():
        raise DataError(f"{printable(folder)} is no run folder", "name the folder that training wrote")
    config = with_absolute_paths(load_config(data=data, file=str(folder / "config.toml")))
    model, info = load_classifier(folder)
    with photos_of(folder, config):
        photos = open_filtered(config).photos
    runtime = runtime_of_run(device, config.precision, config.channels_last)
    split, changes = load_split(folder / "split.json", photos)
    if changes:
        changes.refuse(folder / "split.json", "restore the photos that the run was trained and tested on")
    return Run(config, runtime, photos, split, info, runtime.place(model), folder)
