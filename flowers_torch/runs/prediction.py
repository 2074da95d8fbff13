"""Predictions of a run's network for some of its images."""

from collections.abc import Sequence

from torch import nn

from flowers_torch.config import Stage
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import Check


def predict_indices(
    experiment: Experiment,
    model: nn.Module,
    indices: Sequence[int],
    check: Check = lambda images: None,
    from_features: bool = False,
) -> Predictions:
    """Predictions in the order of the indices, each image once, from all processes.

    `from_features` uses cached features where that is possible, of a backbone that the last stage froze.
    """
    if from_features:
        split = experiment.features.split(model)
        batches = experiment.features.batches(split, indices, check) if split else None
        if split and batches:
            return _gathered(experiment, collect(split.head, batches, experiment.runtime, check), len(indices))
    model.eval()
    return _predict(experiment, model, indices, check)


def predict_validation(
    experiment: Experiment, model: nn.Module, stage: Stage, check: Check = lambda images: None
) -> Predictions:
    """Predictions for the validation images with the same bits as in the epochs of a stage.

    What is fused depends on what the stage trains. A resumed run recomputes these predictions, and in another
    order of operations it would end with another temperature.
    """
    splits = experiment.splits
    if stage.views_to_cache(len(splits["train"])):
        return predict_indices(experiment, model, splits["val"], check, from_features=True)
    apply_rules(model, rules_for(model, stage.train))
    set_train_mode(model, stage.batch_norm)
    return _predict(experiment, model, splits["val"], check)


def _predict(experiment: Experiment, model: nn.Module, indices: Sequence[int], check: Check) -> Predictions:
    size = experiment.info.preprocessing.size
    network = experiment.acceleration.training_network(model, experiment.runtime, size)
    found = collect(network, experiment.loaders.in_order(indices), experiment.runtime, check)
    return _gathered(experiment, found, len(indices))


def _gathered(experiment: Experiment, found: Predictions, count: int) -> Predictions:
    return found.gathered(experiment.distributed, count, experiment.config.batch_size)
