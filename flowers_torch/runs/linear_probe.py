"""A stage that fits a linear head in closed form on cached features, in place of training it by steps."""

import time
from typing import Any

import torch
from torch import nn

from flowers_torch.config import Stage
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.metrics import describe_epoch, score
from flowers_torch.evaluation.predictions import collect
from flowers_torch.log import log
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.stage import (
    history_row,
    make_train_state,
    raise_if_stopped,
    run_callbacks,
    stage_features,
)
from flowers_torch.training.checkpoint import Checkpointer, RunState
from flowers_torch.training.linear_probe import fit_linear_probe
from flowers_torch.training.state import TrainState
from flowers_torch.training.stopping import StopRequest


def fit_head(experiment: Experiment, model: nn.Module, checkpointer: Checkpointer, stop: StopRequest) -> None:
    """Fits the head of the network to its optimum, and moves the run to the next stage.

    With several processes the main one does this for all. Arguments as in `train_stage`.

    Raises:
        StoppedError: a signal came; the features that were computed are cached.
        UsageError: the features cannot be computed apart from the head, or exceed the memory.
    """
    state, stages, distributed = checkpointer.state, experiment.config.stages, experiment.distributed
    stage = stages[state.stage]
    log.info(f"stage    {state.stage + 1} of {len(stages)}, {stage.name}: a linear head, fitted by L-BFGS")
    train = make_train_state(experiment, model, stage, state.stage)
    row = _fit(experiment, stage, train, state, stop) if distributed.is_main else {}
    distributed.broadcast_tensors(model.state_dict().values())
    checkpointer.end_epoch(distributed.broadcast(row), model)
    reason = run_callbacks(experiment, state)
    if reason:
        log.info(f"{reason}; the best weights are tested")
    state.stage, state.epoch = len(stages) if reason else state.stage + 1, 0
    checkpointer.save(train)


def _fit(experiment: Experiment, stage: Stage, train: TrainState, state: RunState, stop: StopRequest) -> dict[str, Any]:
    """Fits the head; the row of the history."""
    started = time.monotonic()

    def check(_: int) -> None:
        raise_if_stopped(experiment, stop)

    found = stage_features(experiment, train.model, stage, check)
    if found is None:
        what = f"stage {stage.name}: optimizer lbfgs needs cached features, which are not possible here"
        raise UsageError(what, "raise cache_gib, or use optimizer = adamw")
    split, features, validation = found
    dataset, indices = experiment.dataset, experiment.splits["train"]
    labels = torch.tensor([dataset.labels[i] for i in indices]).repeat(len(features) // len(indices))
    weights = train.class_weights
    options = (None if weights is None else weights.cpu(), train.label_smoothing)
    held_out = (validation.features, validation.labels)
    probe, l2 = fit_linear_probe((features, labels), held_out, len(dataset.classes), *options)
    split.head.set_linear(*probe.layer())
    fitted = score(probe.logits(features), labels)
    predictions = collect(split.head, validation, experiment.runtime, check)
    seconds = time.monotonic() - started
    timing = (seconds, len(labels) / seconds)
    row = history_row(stage, state, None, (fitted.loss, fitted.accuracy), predictions, timing)
    log.info(f"{describe_epoch(row, 1)}, L2 penalty {l2:g}")
    return row
