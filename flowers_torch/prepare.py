"""From a configuration to everything that a run works on: device, photos, split, network."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.config import Config, Stage, split_fractions
from flowers_torch.data.admission import Admission, admit
from flowers_torch.data.augment import train_transform
from flowers_torch.data.flowers17 import official_split
from flowers_torch.data.folder import Photos
from flowers_torch.data.loaders import PhotoDataset, choose_workers
from flowers_torch.data.sources import open_photos
from flowers_torch.data.splits import Split, describe_split, exact_split, split_photos
from flowers_torch.errors import UsageError
from flowers_torch.models.classifier import Record, build
from flowers_torch.models.freeze import Rules, apply_rules, freeze_table, rules_for, set_train_mode
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.models.zoo import check_size
from flowers_torch.training.engine import class_weights
from flowers_torch.training.estimate import estimate
from flowers_torch.training.monitors import log
from flowers_torch.training.runtime import Runtime, choose_runtime, probe_precision

SEED_COUNTS = (800, 280, 280)  # of Flowers-17 in the Keras seed, with the 40 photos it left over


@dataclasses.dataclass
class Run:
    """Everything that a run works on."""

    config: Config
    runtime: Runtime
    photos: Photos
    split: Split
    record: Record
    model: nn.Module
    folder: Path = Path()
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # photos left out: path to reason


def prepare(config: Config) -> Run:
    """Device, photos, split and network of a configuration; nothing is written yet."""
    runtime = choose_runtime(config.device, config.precision, config.channels_last, config.threads)
    weights = config.weights or ("none" if config.data == "demo" else "imagenet")
    plan = plan_weights(config.arch, weights, config.keras_input)
    preprocessing = dataclasses.replace(
        plan.preprocessing,
        size=config.size or plan.preprocessing.size,
        squash=config.resize == "squash" if config.resize else plan.preprocessing.squash,
    )
    check_size(config.arch, preprocessing.size)

    admission = admit_photos(config)
    photos = admission.photos
    for line in (*photos.notes, *admission.remarks):
        log.info(f"note     {line}")
    split = choose_split(photos, config, admission.twins)
    log.info(f"data     {photos.name}: {describe_split(photos, split)}")

    record = Record(
        arch=config.arch,
        classes=photos.classes,
        preprocessing=preprocessing,
        head_hidden=config.head_hidden,
        dropout=config.dropout,
        head_norm=config.head_norm,
        model_options=plan.options | config.model_options,
        weights=plan.source,
        licence=plan.licence,
    )
    torch.manual_seed(config.seed)
    model = build(record)
    loaded = load_weights(model, config.arch, plan)
    size = sum(parameter.numel() for parameter in model.parameters())
    log.info(f"network  {config.arch}, {size:,} parameters, input {preprocessing.size} px; {loaded}")
    if plan.licence:
        log.info(f"weights  {plan.source}, licence: {plan.licence}")
    runtime = probe_precision(runtime, runtime.place(model), preprocessing.size)
    log.info(f"device   {runtime.device}, {runtime.precision} ({runtime.reason})")
    # What was chosen becomes part of the configuration: a resumed or repeated run must not choose anew.
    config = dataclasses.replace(config, weights=weights, precision=runtime.precision)
    return Run(config, runtime, photos, split, record, model, bad=admission.bad)


def admit_photos(config: Config) -> Admission:
    """The photos of a configuration that can be trained on."""
    return admit(open_photos(config.data), config.quarantine, config.groups, config.skip_bad)


def dry_run(config: Config) -> None:
    """Shows data, network, stages, memory and time of a configuration, and writes nothing."""
    run = prepare(config)
    for number, stage in enumerate(config.stages, start=1):
        groups = apply_rules(run.model, stage_rules(run.model, stage))
        set_train_mode(run.model, stage.batch_norm == "adapt")
        log.info(f"stage {number}  {stage.name}: {stage.epochs} epochs, {stage.optimizer}, lr {stage.lr:g}")
        log.info(freeze_table(run.model, groups, stage.lr))
        needs = estimate(
            run.model, run.record.preprocessing.size, config.batch_size, run.runtime, stage.optimizer
        )
        seconds = stage.epochs * (
            len(run.split["train"]) * needs.train_seconds + len(run.split["val"]) * needs.predict_seconds
        )
        memory = needs.memory_bytes / 2**30
        log.info(f"  about {seconds / 60:.1f} minutes (reading photos not counted) and {memory:.1f} GiB")


def stage_rules(model: nn.Module, stage: Stage) -> Rules:
    """What trains in a stage: its own rules, or those that its `train` stands for."""
    return [(pattern, rate) for pattern, rate in stage.rules] or rules_for(model, stage.train)


def photo_dataset(run: Run, part: str, policy: str) -> PhotoDataset:
    """Photos of a part under an augmentation policy."""
    paths = [run.photos.root / run.photos.paths[index] for index in run.split[part]]
    labels = [run.photos.labels[index] for index in run.split[part]]
    transform = train_transform(policy, **dataclasses.asdict(run.record.preprocessing))
    return PhotoDataset(paths, labels, transform, run.config.seed)


def loading(run: Run) -> dict[str, Any]:
    """How batches are read on this machine: keywords of `make_loader`."""
    on_cpu = run.runtime.device.type == "cpu"
    return {
        "workers": choose_workers(run.config.workers, on_cpu),
        "pin_memory": run.runtime.device.type == "cuda",
    }


def balanced_weights(run: Run) -> Tensor | None:
    """Weights of the classes in the loss, where the configuration wants them."""
    if run.config.class_weights != "balanced":
        return None
    labels = [run.photos.labels[index] for index in run.split["train"]]
    return class_weights(labels, len(run.photos.classes)).to(run.runtime.device)


def choose_split(photos: Photos, config: Config, twins: Sequence[Sequence[int]] = ()) -> Split:
    """Shares of any set, exact for the fixed Flowers-17; by name the seed's and Oxford's own there."""
    shares = split_fractions(config.split)
    if photos.name == "flowers17":
        if config.split.startswith("oxford"):
            return official_split(photos, int(config.split[-1]))
        if shares is None:
            return exact_split(photos, SEED_COUNTS, config.seed, twins)
        val, test = (round(share * len(photos)) for share in shares[1:])
        return exact_split(photos, (len(photos) - val - test, val, test), config.seed, twins)
    if shares is None:
        raise UsageError(f"--split {config.split} is for flowers17 only", "give shares such as 60/20/20")
    return split_photos(photos, shares, config.seed, twins)
