"""Model ranking: which backbone suits these images, judged by a linear head on its frozen features."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flowers_torch.config import HEAD_ONLY, Config, Stage
from flowers_torch.data.splits.assign import group_units
from flowers_torch.errors import FlowersError, UsageError
from flowers_torch.evaluation.metrics import score, wilson
from flowers_torch.evaluation.out_of_fold import out_of_fold_probabilities
from flowers_torch.log import log
from flowers_torch.models.recommended import Backbone
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.linear_probe import describe_choice

TIMED_IMAGES = 8  # of a timed forward pass


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A backbone on these images."""

    arch: str
    accuracy: float  # cross-validated, over training and validation images
    low: float  # of its 95% interval
    high: float
    images_per_second: float  # forward pass on this machine
    parameters: int
    size: int  # of the images, in pixels
    weights: str
    license: str
    features: str = ""  # the feature set that was best, see models/feature_sets.py; "": the network's own
    problem: str = ""  # why it could not be tried


def rank_models(config: Config, backbones: Sequence[Backbone]) -> list[Candidate]:
    """Ranks backbones by the cross-validated accuracy of a linear head, best first; failed ones come last.

    The test images are not used: a network that is chosen by its test accuracy has no test any more. Stages and
    head of the configuration are not used either.

    Raises:
        UsageError: no network could be tried.
    """
    found = []
    head_only = HEAD_ONLY | {"stages": [Stage(**stage) for stage in HEAD_ONLY["stages"]]}
    for backbone in backbones:
        changes: dict[str, Any] = {"arch": backbone.arch, "weights": backbone.weights, "size": backbone.size}
        try:
            found.append(_try(*Experiment.new(dataclasses.replace(config, **changes, **head_only))))
        except FlowersError as error:
            found.append(Candidate(backbone.arch, 0.0, 0.0, 0.0, 0.0, 0, 0, backbone.weights, "", problem=str(error)))
    if all(candidate.problem for candidate in found):
        raise UsageError(f"no network could be tried; the first: {found[0].problem}", "choose other networks")
    return sorted(found, key=lambda candidate: (candidate.problem != "", -candidate.accuracy))


def _try(experiment: Experiment, model: nn.Module) -> Candidate:
    info, dataset, splits = experiment.info, experiment.dataset, experiment.splits
    indices = [*splits["train"], *splits["val"]]
    sets = experiment.features.sets_of_frozen(model, indices)
    labels = torch.tensor([dataset.labels[index] for index in indices])
    groups = group_units(dataset, experiment.filtered.duplicates)
    units = [groups[index] for index in indices]
    found = {
        name: out_of_fold_probabilities(features, labels, len(info.classes), units)[0]
        for name, features in sets.items()
    }
    losses = {name: score(probabilities.log(), labels).loss for name, probabilities in found.items()}
    chosen = min(losses, key=lambda name: losses[name])
    correct = found[chosen].argmax(1) == labels
    accuracy, interval = float(correct.float().mean()), wilson(int(correct.sum()), len(indices))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    speed = _images_per_second(experiment, model)
    log.info(f"tried    {info.arch}: {accuracy:.4f}, {speed:.0f} img/s")
    if len(losses) > 1:
        log.info(f"features {describe_choice('cross-validated', chosen, losses)}")
    size = info.preprocessing.size
    source = (info.weights, info.license)
    return Candidate(info.arch, accuracy, *interval, speed, parameters, size, *source, chosen)


@torch.inference_mode()
def _images_per_second(experiment: Experiment, model: nn.Module) -> float:
    runtime, size = experiment.runtime, experiment.info.preprocessing.size
    images = runtime.images(torch.randn(TIMED_IMAGES, 3, size, size))
    network = experiment.acceleration.training_network(model.eval(), runtime, size)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        with runtime.autocast():
            network(images).sum().item()
        seconds.append(time.perf_counter() - started)
    return TIMED_IMAGES / min(seconds[1:])
