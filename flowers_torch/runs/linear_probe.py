"""A stage that fits a linear head in closed form on cached features, in place of training it by steps."""

import time
from typing import Any

import torch
from torch import nn

from flowers_torch.config import Stage
from flowers_torch.errors import StoppedError, UsageError
from flowers_torch.evaluation.metrics import score
from flowers_torch.evaluation.predictions import collect
from flowers_torch.evaluation.summary import describe_epoch
from flowers_torch.log import log
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.stage import history_row, make_train_state
from flowers_torch.shell import command_line
from flowers_torch.training.checkpoint import Checkpointer, RunState, checkpoint_files
from flowers_torch.training.linear_probe import fit_linear_probe
from flowers_torch.training.state import TrainState
from flowers_torch.training.stopping import StopRequest


def fit_head(experiment: Experiment, model: nn.Module, checkpointer: Checkpointer, stop: StopRequest) -> None:
    """Fits the head of the network to its optimum, and moves the run to the next stage.

    With several processes the main one does this for all.

    Args:
        experiment: What the run works on.
        model: The network.
        checkpointer: Holds the run's state and saves it.
        stop: Checked after each batch.

    Raises:
        StoppedError: a signal came; the features that were computed are cached.
        UsageError: the features cannot be computed apart from the head, or exceed the memory.
    """
    state, stages, distributed = checkpointer.state, experiment.config.stages, experiment.distributed
    stage = stages[state.stage]
    log.info(f"stage    {state.stage + 1} of {len(stages)}, {stage.name}: a linear head, fitted by L-BFGS")
    train = make_train_state(experiment, model, stage, state.stage)
    row: dict[str, Any] = {}
    if distributed.is_main:
        row = _fit(experiment, stage, train, state, stop)
    distributed.broadcast_model(model)
    row = distributed.broadcast(row)
    checkpointer.end_epoch(row, model)
    state.stage, state.epoch = state.stage + 1, 0
    checkpointer.save(train)


def _fit(
    experiment: Experiment, stage: Stage, train: TrainState, state: RunState, stop: StopRequest
) -> dict[str, Any]:
    """Fits the head; the row of the history."""
    started = time.monotonic()

    def check(_: int) -> None:
        if stop.number:
            saved = checkpoint_files(experiment.folder)
            resume = command_line("flowers-torch", "train", "--resume", experiment.folder.absolute())
            fix = f"resume with: {resume}" if saved else "start again"
            raise StoppedError(f"stopped by {stop.signal_name}", fix, stop.number)

    dataset, splits, cache = experiment.dataset, experiment.splits, experiment.features
    views = stage.views_to_cache(len(splits["train"]))
    split = cache.split(train.model)
    features = cache.features(split, splits["train"], stage.augment, views, check) if split else None
    validation = cache.batches(split, splits["val"], check) if split else None
    if split is None or features is None or validation is None:
        what = f"stage {stage.name}: optimizer lbfgs needs cached features, which are not possible here"
        raise UsageError(what, "raise cache_gib, or use optimizer = adamw")
    labels = torch.tensor([dataset.labels[index] for index in splits["train"]]).repeat(views)
    weights = train.class_weights
    probe, l2 = fit_linear_probe(
        (features, labels),
        (validation.features, validation.labels),
        len(dataset.classes),
        None if weights is None else weights.cpu(),
        train.label_smoothing,
    )
    head: nn.Linear = train.model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        for parameter, value in zip((head.weight, head.bias), probe.layer(), strict=True):
            parameter.copy_(value)
    fitted = score(probe.logits(features), labels)
    predictions = collect(split.head, validation, experiment.runtime, check)
    seconds = time.monotonic() - started
    training, timing = (fitted.loss, fitted.accuracy), (seconds, len(labels) / seconds)
    row = history_row(stage, state, None, training, predictions, timing)
    log.info(f"{describe_epoch(row, 1)}, L2 penalty {l2:g}")
    return row
