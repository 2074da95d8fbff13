"""A stage that fits a linear head in closed form on cached features, in place of training it by steps."""

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.config import Stage
from flowers_torch.data.loading.gpu_cache import CachedFeatureBatches
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.metrics import describe_epoch, fit_temperature, score
from flowers_torch.evaluation.predictions import collect
from flowers_torch.files.threads import map_in_threads
from flowers_torch.log import log
from flowers_torch.models.feature_sets import offered_sets, set_features
from flowers_torch.models.heads import set_head
from flowers_torch.models.split_model import SplitModel
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import Check
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


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """Features of the training and validation images: of the head's feature set, or of all sets to choose from."""

    split: SplitModel
    train: Tensor  # (views * images, D)
    validation: CachedFeatureBatches
    choosing: bool

    @property
    def offered(self) -> list[str]:
        """The names of the sets, that of the head first."""
        own = self.split.feature_set
        return [own, *(name for name in self.split.sets if name != own)] if self.choosing else [own]

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """The features of a set, of the training and the validation images."""
        found = (self.train, self.validation.features)
        train, validation = (self.split.select(each, name) for each in found) if self.choosing else found
        return train, validation


def _features(experiment: Experiment, model: nn.Module, stage: Stage, check: Check, may_choose: bool) -> SetFeatures:
    choosing = may_choose and len(offered_sets(model)) > 1
    found = stage_features(experiment, model, stage, check, every=choosing)
    if found is None and choosing:  # one set takes less memory
        choosing, found = False, stage_features(experiment, model, stage, check)
    if found is None:
        what = f"stage {stage.name}: optimizer lbfgs needs cached features, which are not possible here"
        experiment.distributed.fail(UsageError(what, "raise cache_gib, or use optimizer = adamw"))
    return SetFeatures(*found, choosing)


def _fit(
    experiment: Experiment, stage: Stage, train: TrainState, state: RunState, stop: StopRequest
) -> tuple[dict[str, Any], str]:
    """Fits the head; the row of the history, and the feature set that the head takes now."""
    started, distributed, model = time.monotonic(), experiment.distributed, train.model

    def check(_: int) -> None:
        if stop.agreed(distributed):
            raise_if_stopped(experiment, stop)

    features = _features(experiment, model, stage, check, may_choose=state.stage == 0)
    split, validation = features.split, features.validation
    dataset, indices, val = experiment.dataset, experiment.splits["train"], experiment.splits["val"]
    labels = torch.tensor([dataset.labels[i] for i in indices]).repeat(len(features.train) // len(indices))
    weights = train.class_weights
    options = (None if weights is None else weights.cpu(), train.label_smoothing)
    probes: dict[str, LinearProbe] = {}  # of the main process

    def fit_set(name: str) -> tuple[LinearProbe, float, float]:
        seen, held_out = features.of(name)
        pairs = (seen, labels), (held_out, validation.labels)
        probe, penalty = fit_linear_probe(*pairs, len(dataset.classes), *options)
        logits = probe.logits(held_out)
        loss = score(logits / fit_temperature(logits, validation.labels), validation.labels).loss
        return probe, penalty, loss

    def fit() -> tuple[str, float, float, float]:
        losses, penalties = {}, {}
        threads = min(len(features.offered), torch.get_num_threads())
        for name, found in zip(features.offered, map_in_threads(fit_set, features.offered, threads), strict=True):
            probes[name], penalties[name], losses[name] = found
        chosen = min(losses, key=lambda name: losses[name])
        if len(losses) > 1:
            log.info(f"features {describe_choice('validation', chosen, losses)}")
        fitted = score(probes[chosen].logits(features.of(chosen)[0]), labels)
        return chosen, fitted.loss, fitted.accuracy, penalties[chosen]

    chosen, loss, accuracy, l2 = distributed.lead(fit)
    if chosen != split.feature_set:
        set_features(model, chosen)
        set_head(model, len(dataset.classes))
    _, held_out = features.of(chosen)
    head = split.head_of(model, held_out.shape[1])
    if probes:
        head.set_linear(probes[chosen].weight, probes[chosen].bias)
    distributed.broadcast_tensors(model.state_dict().values())
    batches = (validation.labels, validation.order, validation.paths, validation.device)
    own = collect(head, CachedFeatureBatches(held_out, *batches), experiment.runtime, check, with_features=False)
    predictions = own.gathered(distributed, len(val), experiment.config.batch_size)
    seconds = time.monotonic() - started
    timing = (seconds, len(labels) / seconds)
    row = history_row(stage, state, None, (loss, accuracy), predictions, timing)
    log.info(f"{describe_epoch(row, 1)}, L2 penalty {l2:g}")
    return distributed.broadcast(row), chosen


def describe_choice(kind: str, chosen: str, losses: dict[str, float]) -> str:
    """The feature set that was chosen among others by a kind of loss, for the log."""
    others = ", ".join(f"{name or 'own'} {loss:.4f}" for name, loss in losses.items() if name != chosen)
    return f"{chosen or 'own'}: {kind} loss {losses[chosen]:.4f}; {others}"
