"""A stage that fits a linear head in closed form on cached features, in place of training it by steps."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.config import Stage
from flowers_torch.data.loading.gpu_cache import CachedFeatureBatches
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.metrics import describe_epoch, fit_temperature, score
from flowers_torch.evaluation.predictions import collect
from flowers_torch.log import log
from flowers_torch.models.feature_sets import offered_sets, set_features
from flowers_torch.models.heads import feature_width, set_head
from flowers_torch.models.split_model import Head
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.stage import (
    history_row,
    make_train_state,
    raise_if_stopped,
    run_callbacks,
    stage_features,
)
from flowers_torch.training.checkpoint import Checkpointer, RunState
from flowers_torch.training.linear_probe import LinearProbe, fit_linear_probe
from flowers_torch.training.state import TrainState
from flowers_torch.training.stopping import StopRequest


def fit_head(experiment: Experiment, model: nn.Module, checkpointer: Checkpointer, stop: StopRequest) -> Experiment:
    """Fits the head of the network to its optimum, and moves the run to the next stage.

    In the first stage the head of a transformer also gets the feature set with the lowest validation loss. Later
    the best weights may be of an earlier stage, and their head must still fit. Several processes compute the
    features, and the main one fits the head for all. Arguments as in `train_stage`.

    Returns:
        The run with the feature set that was chosen.

    Raises:
        StoppedError: a signal came; the features that were computed are cached.
        UsageError: the features cannot be computed apart from the head, or exceed the memory.
    """
    state, stages = checkpointer.state, experiment.config.stages
    stage = stages[state.stage]
    log.info(f"stage    {state.stage + 1} of {len(stages)}, {stage.name}: a linear head, fitted by L-BFGS")
    train = make_train_state(experiment, model, stage, state.stage)
    row, chosen = _fit(experiment, stage, train, state, stop)
    if chosen != experiment.info.features:
        experiment = experiment.with_feature_set(chosen)
        checkpointer.info = experiment.info
        train = make_train_state(experiment, model, stage, state.stage)  # of the new head
    checkpointer.end_epoch(row, model)
    reason = run_callbacks(experiment, state)
    if reason:
        log.info(f"{reason}; the best weights are tested")
    state.stage, state.epoch = len(stages) if reason else state.stage + 1, 0
    checkpointer.save(train)
    return experiment


def _fit(
    experiment: Experiment, stage: Stage, train: TrainState, state: RunState, stop: StopRequest
) -> tuple[dict[str, Any], str]:
    """Fits the head; the row of the history, and the feature set that the head takes now."""
    started, distributed, model = time.monotonic(), experiment.distributed, train.model

    def check(_: int) -> None:
        if stop.agreed(distributed):
            raise_if_stopped(experiment, stop)

    choosing = state.stage == 0 and len(offered_sets(model)) > 1
    found = stage_features(experiment, model, stage, check, every=choosing)
    if found is None and choosing:
        choosing, found = False, stage_features(experiment, model, stage, check)
    if found is None:
        what = f"stage {stage.name}: optimizer lbfgs needs cached features, which are not possible here"
        distributed.fail(UsageError(what, "raise cache_gib, or use optimizer = adamw"))
    split, every, validation = found
    dataset, indices, val = experiment.dataset, experiment.splits["train"], experiment.splits["val"]
    labels = torch.tensor([dataset.labels[i] for i in indices]).repeat(len(every) // len(indices))
    weights = train.class_weights
    options = (None if weights is None else weights.cpu(), train.label_smoothing)
    former = split.feature_set
    offered = [former, *(name for name in split.sets if name != former)] if choosing else [former]

    def select(features: Tensor, name: str) -> Tensor:
        return split.select(features, name) if choosing else features

    probes: dict[str, LinearProbe] = {}

    def fit() -> tuple[str, float, float, float]:
        losses, penalties = {}, {}
        for name in offered:
            held_out = (select(validation.features, name), validation.labels)
            pair = (select(every, name), labels)
            probes[name], penalties[name] = fit_linear_probe(pair, held_out, len(dataset.classes), *options)
            logits = probes[name].logits(held_out[0])
            losses[name] = score(logits / fit_temperature(logits, held_out[1]), held_out[1]).loss
        chosen = min(offered, key=lambda name: losses[name])
        if len(offered) > 1:
            log.info(f"features {describe_choice('validation', chosen, losses)}")
        fitted = score(probes[chosen].logits(select(every, chosen)), labels)
        return chosen, fitted.loss, fitted.accuracy, penalties[chosen]

    chosen, loss, accuracy, l2 = distributed.lead(fit)
    if chosen != former:
        set_features(model, chosen)
        set_head(model, len(dataset.classes))
    classifiers = [model.get_submodule(name) for name in split.classifiers]
    head = split.head if chosen == former else Head(classifiers, [feature_width(layer) for layer in classifiers])
    if probes:
        head.set_linear(*probes[chosen].layer())
    distributed.broadcast_tensors(model.state_dict().values())
    seen = (validation.labels, validation.order, validation.paths, validation.device)
    own = collect(head, CachedFeatureBatches(select(validation.features, chosen), *seen), experiment.runtime, check)
    predictions = own.gathered(distributed, len(val), experiment.config.batch_size)
    seconds = time.monotonic() - started
    timing = (seconds, len(labels) / seconds)
    row = history_row(stage, state, None, (loss, accuracy), predictions, timing)
    log.info(f"{describe_epoch(row, 1)}, L2 penalty {l2:g}")
    return distributed.broadcast(row), chosen


def describe_choice(kind: str, chosen: str, losses: dict[str, float]) -> str:
    """The feature set that was chosen among others by its loss, for the log."""
    others = ", ".join(f"{name or 'own'} {loss:.4f}" for name, loss in losses.items() if name != chosen)
    return f"{chosen or 'own'}: {kind} loss {losses[chosen]:.4f}; {others}"
