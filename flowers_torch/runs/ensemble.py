"""Several runs as one: the mean of their predictions, or the mean of their weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import DataError, UsageError
from flowers_torch.evaluation import ensembles
from flowers_torch.evaluation.comparison import common_images, describe_choice, loss_change, select
from flowers_torch.evaluation.ensembles import Candidate
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.prediction_sets import fit_thresholds
from flowers_torch.evaluation.predictions import load_predictions
from flowers_torch.files.reading import read_json
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, read_model_info, save_classifier
from flowers_torch.runs.crossval import SUMMARY_FORM, fold_folder
from flowers_torch.runs.dataset import open_other
from flowers_torch.runs.evaluate import TrainedModel, count_known
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.folder import SUMMARY_FILE
from flowers_torch.training.checkpoint import MODEL_FILE
from flowers_torch.training.device import choose_runtime

MEAN_PREDICTION = "predictions: mean of all"


@dataclasses.dataclass(frozen=True)
class Ensembles:
    """Ensembles of runs, each scored on the validation and test images that they share."""

    candidates: list[Candidate]  # the single runs, the mean of their predictions, averages of their weights
    best: Candidate  # with the lowest validation loss
    alike: bool  # whether the networks differ in nothing but their weights
    choice: str  # what choosing the best one instead of the best single run changes, in words
    labels: Tensor  # of the validation images in common (N,)
    test: int  # test images in common


def run_folders(folder: Path) -> list[Path]:
    """The run itself, or the runs of a cross-validation."""
    if not (folder / SUMMARY_FILE).is_file():
        return [folder]
    runs = read_json(folder / SUMMARY_FILE, "a summary of a cross-validation", SUMMARY_FORM)["runs"]
    return [fold_folder(folder, run["seed"], run["fold"]) for run in runs]


def score_ensembles(folders: Sequence[Path], weights: bool = True, device: str = "auto", data: str = "") -> Ensembles:
    """Scores two or more finished runs alone, the mean of their predictions and averages of their weights.

    `weights` asks for the averages, where the networks are alike; the network runs for each of them. `data` is
    where the images of the runs are now, if they have moved.

    Raises:
        DataError: the runs have no predictions, different classes or no images in common.
    """
    runs, names = [load_predictions(folder) for folder in folders], [folder.name for folder in folders]
    paths = {split: common_images(runs, split) for split in ("val", "test")}
    val, test = ([select(run, split, paths[split]) for run in runs] for split in paths)
    labels = (val[0][1], test[0][1])
    logits = [(one[0], other[0]) for one, other in zip(val, test, strict=True)]
    singles = [ensembles.score_candidate(name, one, labels) for name, one in zip(names, logits, strict=True)]
    means = [ensembles.mean_prediction(each) for each in zip(*logits, strict=True)]
    candidates = [*singles, ensembles.score_candidate(MEAN_PREDICTION, (means[0], means[1]), labels)]
    alike = _are_alike([_info(folder) for folder in folders])
    if alike and weights:
        run, network = Experiment.open(folders[0], device, data)
        model = TrainedModel(network, run.info, run.runtime, run.dataset)
        place = {path: index for index, path in enumerate(run.dataset.paths)}

        def predict(state: ensembles.State) -> ensembles.ValAndTest:
            network.load_state_dict(state)
            found = [model.predict([place[path] for path in members]).logits for members in paths.values()]
            return found[0], found[1]

        states = [safe_load(folder / MODEL_FILE)[0] for folder in folders]
        candidates += ensembles.model_soups(names, states, singles, labels, predict)
    best, single = (ensembles.best_candidate(some) for some in (candidates, singles))
    choice = describe_choice(*loss_change(single.logits, best.logits, labels[0]), len(labels[0]))
    return Ensembles(candidates, best, alike, choice if best is not single else "", labels[0], len(paths["test"]))


def save_averaged(found: Ensembles, folders: Sequence[Path], out: Path) -> Candidate:
    """Writes the best averaged weights as a weights file.

    Raises:
        UsageError: the networks differ.
    """
    averaged = [candidate for candidate in found.candidates if candidate.state is not None]
    if not averaged:
        raise UsageError("the networks differ, so there are no averaged weights", "leave out --out")
    chosen = ensembles.best_candidate(averaged)
    # No out-of-distribution detector: it fits the features of one network, not those of an average.
    selective = fit_thresholds(chosen.logits.softmax(1), found.labels)
    mirror = all(_info(folder).mirror for folder in folders)
    info = dataclasses.replace(_info(folders[0]), mirror=mirror, temperature=chosen.temperature, selective=selective)
    save_classifier(chosen.state or {}, info, out, combined=[folder.name for folder in folders])
    return chosen


def evaluate_ensembles(
    folders: Sequence[Path], data: str, weights: bool = True, device: str = "auto"
) -> tuple[dict[str, Scores], int]:
    """Scores two or more runs, and their means, on other images; `weights` averages weights too.

    Returns the scores by name, and how many of the images trained a run or chose its weights.

    Raises:
        DataError: the runs or the images have different classes.
    """
    runtime, models = choose_runtime(device, "fp32"), [load_classifier(folder) for folder in folders]
    if any(info.classes != models[0][1].classes for _, info in models):
        raise DataError("the runs have different classes", "name runs of the same data")
    dataset = open_other(folders[0], data)
    everything = range(len(dataset))

    def predict(network: nn.Module, info: ModelInfo) -> Tensor:
        model = TrainedModel(runtime.place(network), info, runtime, dataset)
        return model.predict(everything).logits / info.temperature

    logits = {folder.name: predict(*model) for folder, model in zip(folders, models, strict=True)}
    logits[MEAN_PREDICTION] = ensembles.mean_prediction(list(logits.values()))
    if weights and _are_alike([info for _, info in models]):
        network, info = models[0]
        states = [one.state_dict() for one, _ in models]
        network.load_state_dict(ensembles.average_weights(states, [1 / len(models)] * len(models)))
        logits["weights: mean of all"] = predict(network, info)
    labels = torch.tensor(TrainedModel(*models[0], runtime, dataset).labels)
    scores = {name: score(values, labels) for name, values in logits.items()}
    return scores, max(count_known(folder, dataset, everything) or 0 for folder in folders)


def _info(folder: Path) -> ModelInfo:
    return read_model_info(safe_load(folder / MODEL_FILE)[1], folder)


def _are_alike(infos: Sequence[ModelInfo]) -> bool:
    """Whether the networks differ in nothing but their weights."""
    heads = [(one.head_hidden, one.head, one.features) for one in infos]
    bodies = [(one.arch, str(one.model_options), one.preprocessing) for one in infos]
    return len(set(heads)) == len(set(bodies)) == 1


def candidate_dict(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    scores = {"val": candidate.val, "test": candidate.test}
    found = {split: {"accuracy": one.accuracy, "loss": one.loss} for split, one in scores.items()}
    return {"name": candidate.name, "temperature": candidate.temperature, **found}
