"""Which backbone suits these photos: several of them, judged by a linear head on their frozen features."""

import dataclasses
import time
from collections.abc import Sequence

import torch

from flowers_torch.config import HEAD_ONLY, Config, Stage
from flowers_torch.data.splits.assign import group_units
from flowers_torch.errors import FlowersError, UsageError
from flowers_torch.evaluation.metrics import wilson
from flowers_torch.evaluation.learning_curve import out_of_fold
from flowers_torch.runs.feature_cache import pooled_features
from flowers_torch.runs.experiment import Run, prepare
from flowers_torch.log import log

PROBE_PHOTOS = 8  # at once, to time a forward pass


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A backbone as these photos see it."""

    arch: str
    accuracy: float  # cross-validated, over training and validation photos
    low: float  # 95% interval
    high: float
    images_per_second: float  # forward, on this machine
    parameters: int
    weights: str
    licence: str
    problem: str = ""  # why it was not tried


def rank_models(config: Config, archs: Sequence[str]) -> list[Candidate]:
    """Ranks backbones by the cross-validated accuracy of a linear head, best first.

    The test photos are not looked at: whoever chooses a network by its test accuracy has no test any more.

    Args:
        config: Of the photos; its stages and head are not used.
        archs: Names of networks. One that cannot be had is listed last, with the reason.

    Raises:
        UsageError: no network at all could be tried.
    """
    found = []
    for arch in archs:
        stages = [Stage(**stage) for stage in HEAD_ONLY["stages"]]
        own = dataclasses.replace(
            config, arch=arch, stages=stages, head_hidden=0, head_norm=False, dropout=0.0, head="softmax"
        )
        try:
            found.append(_judge(prepare(own)))
        except FlowersError as error:
            found.append(Candidate(arch, 0.0, 0.0, 0.0, 0.0, 0, own.weights, "", str(error)))
    if all(candidate.problem for candidate in found):
        raise UsageError(f"no network could be tried; the first: {found[0].problem}", "choose others")
    return sorted(found, key=lambda candidate: (candidate.problem != "", -candidate.accuracy))


def _judge(run: Run) -> Candidate:
    model, info = run.model, run.info
    photos = [*run.split["train"], *run.split["val"]]
    features = pooled_features(run, photos)
    if features is None:
        what = f"{info.arch} cannot be cut in front of its classifier, or its features exceed cache_gib"
        raise UsageError(what, "choose another network, or raise cache_gib")
    labels = torch.tensor([run.photos.labels[index] for index in photos])
    groups = group_units(run.photos, run.duplicates)
    units = [groups[index] for index in photos]
    right = out_of_fold(features, labels, len(info.classes), units=units).argmax(1) == labels
    low, high = wilson(int(right.sum()), len(photos))
    size = sum(parameter.numel() for parameter in model.parameters())
    speed = _images_per_second(run)
    log.info(f"tried    {info.arch}: {right.float().mean():.4f}, {speed:.0f} img/s")
    return Candidate(
        info.arch, float(right.float().mean()), low, high, speed, size, info.weights, info.licence
    )


@torch.inference_mode()
def _images_per_second(run: Run) -> float:
    size = run.info.preprocessing.size
    images = run.runtime.images(torch.randn(PROBE_PHOTOS, 3, size, size))
    network = run.answering()
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        with run.runtime.autocast():
            network(images).sum().item()
        seconds.append(time.perf_counter() - started)
    return PROBE_PHOTOS / min(seconds[1:])
