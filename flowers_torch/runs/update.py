"""Further training of a model with more photos or classes, and a comparison with the former model.

The photos of the run keep their splits. New photos are assigned so that no test photo was ever trained on
(`data/splits/extension.py`). All photos are linked into the folder of the new run.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flowers_torch.config import Config, split_fractions, with_absolute_paths
from flowers_torch.config_file import load_config
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.filter import copies_may_be_mirrored, filter_images, with_groups
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.rows import listed
from flowers_torch.data.splits.assign import SPLITS
from flowers_torch.data.splits.extension import AssignedImage, extend_splits
from flowers_torch.data.splits.split_file import fingerprint, read_split
from flowers_torch.data.tar_members import split_path
from flowers_torch.errors import DataError, ResourceError, UsageError, plural, printable
from flowers_torch.evaluation.comparison import Comparison, compare
from flowers_torch.evaluation.evaluate import predict_images
from flowers_torch.evaluation.predictions import RunPredictions, load_predictions
from flowers_torch.files.atomic import write_csv, write_json
from flowers_torch.files.system import caseless, ignores_case, link_or_copy
from flowers_torch.files.tensors import safe_load
from flowers_torch.log import RESULT, log
from flowers_torch.models.checkpoint import load_classifier, read_model_info
from flowers_torch.report.run_summary import UPDATE_FILE
from flowers_torch.runs import recipe
from flowers_torch.runs.dataset import images_of, log_reading
from flowers_torch.runs.experiment import Hooks
from flowers_torch.runs.folder import new_run_folder
from flowers_torch.training.checkpoint import MODEL_FILE
from flowers_torch.training.device import choose_runtime, runtime_of_run


def update(
    folder: Path,
    source: str,
    changes: dict[str, Any] | None = None,
    command: Sequence[str] | None = None,
    data: str = "",
    out: str | Path = "",
) -> Path:
    """Trains the model of a run further with more images, and compares the two; returns the new run's folder.

    Args:
        source: New images, as `open_dataset` takes them; known ones may be among them.
        changes: To the run's configuration, as `load_config` takes them.
        data: Where the run's own images are now; empty if they have not moved.
        out: Folder of the new run; empty for the next free one in `runs/`.

    Raises:
        UsageError: no finished run, or nothing new.
        DataError: the run's photos are gone or changed, or a new photo would spoil the comparison.
    """
    if not (folder / MODEL_FILE).is_file() or not (folder / "config.toml").is_file():
        raise UsageError(f"{printable(folder)} is not a run with weights", "name the folder of a finished run")
    former = with_absolute_paths(load_config(data=data, file=str(folder / "config.toml")))
    config = _config_of_update(folder, former, changes or {})
    fractions = split_fractions(former.split) or split_fractions(Config.split) or ()
    with images_of(folder, former):
        known = open_dataset(former.data, classes=former.classes, groups=former.groups, test=former.test)
        known = with_groups(known, former.groups)
    old = _parent_images(folder, known)
    groups = (changes or {}).get("groups", former.groups if source.lower().endswith((".csv", ".tsv")) else "")
    found = open_dataset(source, fewest=1, classes=config.classes, groups=groups)
    exclude = config.exclude or (former.exclude if found.root.resolve() == known.root.resolve() else "")
    new = with_groups(filter_images(found, exclude, "none", config.skip_bad).dataset, groups)
    log_reading(new)
    seen = dict(zip(known.paths, inspect_images(known), strict=True))
    deciding = (fractions, former.seed, copies_may_be_mirrored(config.mirror, [*known.classes, *new.classes]))
    added, torn = extend_splits(old, [seen[member.name] for member in old], new, inspect_images(new), *deciding)
    if torn:
        what = plural(torn, "photo belongs", "photos belong")
        log.info(f"note     {what} with photos of several splits; left out: {listed(torn)}")
    if not added:
        raise UsageError(f"{printable(source)} holds no photo that the run does not know", "add new ones")
    new_folder = new_run_folder(str(out), known.name, config.arch)
    links = _link_images([*old, *added], new_folder / "photos")
    counts = ", ".join(f"{sum(m.split == split for m in added)} {split}" for split in SPLITS)
    fresh = sorted({m.label for m in added} - {m.label for m in old})
    classes = f"; new classes: {printable(', '.join(fresh))}" if fresh else ""
    log.info(f"data     {plural(added, 'new photo')} ({counts}) beside the {len(old)} of the run{classes}")
    config = dataclasses.replace(
        config, data=str(new_folder / "photos"), test="", classes="top", exclude="", groups="duplicates"
    )
    rows = [{"file": link, "group": member.group} for link, member in links.items() if member.group]
    if rows:  # a later update has to know them
        write_csv(new_folder / "groups.csv", rows)
        config = dataclasses.replace(config, groups=str((new_folder / "groups.csv").absolute()))
    again = with_absolute_paths(dataclasses.replace(former, data=source)).data
    command = command or ["flowers-torch", "update", str(folder.absolute()), again]
    compare_both = functools.partial(compare_with_parent, folder, device=config.device)
    recipe.train(config, new_folder, overwrite=True, command=command, hooks=Hooks(after_test=compare_both))
    return new_folder


def _config_of_update(folder: Path, former: Config, changes: dict[str, Any]) -> Config:
    """The former run's options, except for what this machine or the new photos decide."""
    precision = runtime_of_run(changes.get("device", "auto"), former.precision).precision
    overrides = {"weights": str((folder / MODEL_FILE).absolute()), "keras_input": "", "exclude": ""} | {
        "groups": "duplicates",
        "device": "auto",
        "threads": 0,
        "precision": precision,
    }
    config = load_config(file=str(folder / "config.toml"), overrides=overrides | changes)
    path = folder / MODEL_FILE
    if config.mirror == "auto" and not read_model_info(safe_load(path)[1], path).mirror:  # more photos do not undo that
        config = dataclasses.replace(config, mirror="no")
    if not split_fractions(config.split):  # named splits are those of Flowers-17 alone
        config = dataclasses.replace(config, split=Config.split)
    return config


def _parent_images(folder: Path, dataset: ImageDataset) -> list[AssignedImage]:
    """The images of a finished run with their splits; `dataset` is what its data holds now."""
    label = {path: dataset.classes[i] for path, i in zip(dataset.paths, dataset.labels, strict=True)}
    splits: dict[str, dict[str, str]] = read_split(folder / "split.json")["splits"]
    marks = [pair for members in splits.values() for pair in members.items()]
    lost = [name for name, mark in marks if name not in label or fingerprint(dataset.root / name) != mark]
    if lost:
        first = f"since {printable(folder)} (first: {printable(lost[0])})"
        what = f"{plural(lost, 'photo is', 'photos are')} gone or changed {first}"
        raise DataError(what, "restore them, or start a new run")
    return [
        AssignedImage(dataset.root / name, label[name], split, name, dataset.groups.get(name, ""))
        for split, members in splits.items()
        for name in members
    ]


def _link_images(members: Sequence[AssignedImage], folder: Path) -> dict[str, AssignedImage]:
    """Links photos into `folder/<split>/<class>/<photo>`, or copies them where links are impossible.

    Returns the photos by their path in the folder.
    """
    for member in members:
        if split_path(member.file):
            what = f"{printable(member.name)} lies in a tar archive, which cannot be linked to"
            raise UsageError(what, "unpack it")
        if member.label.startswith(".") or set(member.label) & set("/\\\0"):
            raise UsageError(f"class {printable(member.label, 40)} is not a valid name of a folder", "rename it")
    labels = sorted({member.label for member in members})
    if len(set(map(caseless, labels))) < len(labels) and ignores_case(folder):
        what = f"of {printable(', '.join(labels), 400)} some would be one folder on this disk"
        raise UsageError(what, "rename classes that differ only in upper and lower case")
    links: dict[str, AssignedImage] = {}
    taken: set[tuple[str, str, str]] = set()
    try:
        for member in members:
            stem, suffix = os.path.splitext(member.file.name)
            name, number = member.file.name, 2
            while (member.split, member.label, caseless(name)) in taken:
                name, number = f"{stem}-{number}{suffix}", number + 1
            taken.add((member.split, member.label, caseless(name)))
            name = f"{member.split}/{member.label}/{name}"
            links[name] = member
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(member.file, folder / name)
    except OSError as error:
        what = f"cannot link the photos into {printable(folder)}: {error.strerror}"
        raise ResourceError(what, "choose another --out") from error
    return links


def compare_with_parent(former: Path, folder: Path, device: str = "auto") -> Comparison:
    """Compares a run with the one it came from, on its test photos, which neither has seen.

    Only photos of classes that both know count. For the other classes it logs how many are right. Writes
    `update.json` and logs the result. `device` is where the former network runs.
    """
    after = load_predictions(folder)
    network, info = load_classifier(former)
    photos = Path(load_config(file=str(folder / "config.toml")).data)
    labels = after.labels["test"]
    known = torch.tensor([name in info.classes for name in after.classes])
    shared = known[labels].nonzero()[:, 0]
    paths, truth = tuple(after.paths["test"][i] for i in shared.tolist()), labels[shared]
    runtime = choose_runtime(device, "fp32")
    network, files = runtime.place(network), [photos / path for path in paths]
    predicted = predict_images(network, info.preprocessing, files, truth.tolist(), runtime).logits
    # The former network's logits in the new network's columns; it cannot predict classes that are new.
    logits = torch.full((len(paths), len(after.classes)), -torch.inf)
    for column, name in enumerate(info.classes):
        if name in after.classes:
            logits[:, after.classes.index(name)] = predicted[:, column]
    before = RunPredictions(after.classes, info.temperature, {"test": paths}, {"test": logits}, {"test": truth})
    result = compare(before, after)
    right = after.logits["test"].argmax(1) == labels
    fresh = {
        name: [int((right & (labels == label)).sum()), int((labels == label).sum())]
        for label, name in enumerate(after.classes)
        if not known[label]
    }
    then, now = (count / result.images for count in (result.first_correct, result.second_correct))
    low, high = result.interval
    log.log(
        RESULT,
        f"update   {plural(result.images, 'test photo')} that neither saw: {then:.4f} before (first), {now:.4f} now "
        f"(second), {now - then:+.4f} (95% bootstrap {low:+.4f} .. {high:+.4f}); {result.verdict()}",
    )
    for name, (correct, images) in fresh.items():
        log.log(RESULT, f"new      {printable(name, 60)}: {correct} of {plural(images, 'test photo')} right")
    if result.p_value < 0.05 and now < then:
        log.info(f"note     keep {printable(former)}, or train longer: it has lost what it knew")
    content = dataclasses.asdict(result) | {"former": str(former.absolute()), "new_classes": fresh}
    write_json(folder / UPDATE_FILE, content)
    return result
