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

    Several processes compute the features, and the main one fits the head for all. Arguments as in `train_stage`.

    Raises:
        StoppedError: a signal came; the features that were computed are cached.
        UsageError: the features cannot be computed apart from the head, or exceed the memory.
    """
    state, stages = checkpointer.state, experiment.config.stages
    stage = stages[state.stage]
    log.info(f"stage    {state.stage + 1} of {len(stages)}, {stage.name}: a linear head, fitted by L-BFGS")
    train = make_train_state(experiment, model, stage, state.stage)
    checkpointer.end_epoch(_fit(experiment, stage, train, state, stop), model)
    reason = run_callbacks(experiment, state)
    if reason:
        log.info(f"{reason}; the best weights are tested")
    state.stage, state.epoch = len(stages) if reason else state.stage + 1, 0
    checkpointer.save(train)


def _fit(experiment: Experiment, stage: Stage, train: TrainState, state: RunState, stop: StopRequest) -> dict[str, Any]:
    """Fits the head; the row of the history."""
    started, distributed = time.monotonic(), experiment.distributed

    def check(_: int) -> None:
        if stop.agreed(distributed):
            raise_if_stopped(experiment, stop)

    found = stage_features(experiment, train.model, stage, check)
    if found is None:
        what = f"stage {stage.name}: optimizer lbfgs needs cached features, which are not possible here"
        distributed.fail(UsageError(what, "raise cache_gib, or use optimizer = adamw"))
    split, features, validation = found
    dataset, indices, val = experiment.dataset, experiment.splits["train"], experiment.splits["val"]
    labels = torch.tensor([dataset.labels[i] for i in indices]).repeat(len(features) // len(indices))
    weights = train.class_weights
    options = (None if weights is None else weights.cpu(), train.label_smoothing)
    held_out = (validation.features, validation.labels)

    def fit() -> tuple[float, float, float]:
        probe, l2 = fit_linear_probe((features, labels), held_out, len(dataset.classes), *options)
        split.head.set_linear(*probe.layer())
        fitted = score(probe.logits(features), labels)
        return fitted.loss, fitted.accuracy, l2

    loss, accuracy, l2 = distributed.lead(fit)
    distributed.broadcast_tensors(train.model.state_dict().values())
    own = collect(split.head, validation, experiment.runtime, check)
    predictions = own.gathered(distributed, len(val), experiment.config.batch_size)
    seconds = time.monotonic() - started
    timing = (seconds, len(labels) / seconds)
    row = history_row(stage, state, None, (loss, accuracy), predictions, timing)
    log.info(f"{describe_epoch(row, 1)}, L2 penalty {l2:g}")
    return distributed.broadcast(row)
