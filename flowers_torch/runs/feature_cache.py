"""What the frozen front of a network answers to the photos, computed once instead of in every epoch.

A stage whose first blocks are frozen asks them the same question again and again. Here they answer to a few
augmented views of each training photo and to each validation photo, and only the tail is trained, on the
stored answers. The pooled features of a photo and of its mirror image are kept on disk too, by everything
that they depend on: weights, preprocessing, precision, view and the bytes of the photo.
"""

import contextlib
import dataclasses
import hashlib
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from torch import Tensor, nn

from flowers_torch import __version__
from flowers_torch.config import Stage
from flowers_torch.data.loading.batches import CPU_PHOTOS, TrainingBatches
from flowers_torch.data.images import open_regular
from flowers_torch.data.loading.image_cache import allocate
from flowers_torch.data.loading.cached_features import CachedFeatureBatches
from flowers_torch.errors import ModelFileError, ResourceError
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.split_model import SplitModel, cut, split_at
from flowers_torch.accelerate.conv_bn import noise
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.heads import classifier_name
from flowers_torch.runs.experiment import Run, part_batches
from flowers_torch.log import bar, log

FORMAT = 4  # of features on disk; raised whenever photos come out otherwise at the front than before
MOST_FEATURE_BYTES = 2 * 2**30  # of all files of features together
OLDEST_FEATURE_SECONDS = 90 * 24 * 3600  # since a file was used
Check = Callable[[int], Any]  # called with the number of photos of each batch; may raise to stop


@dataclasses.dataclass(frozen=True)
class Front:
    """A cut network, and what its front answers to each view of the photos."""

    made: SplitModel
    training: Tensor  # (views * photos, ...)
    validation: CachedFeatureBatches

    @property
    def is_pooled(self) -> bool:
        """Whether the tail is the classifier alone."""
        return self.training.ndim == 2

    def tail_of(self, model: nn.Module) -> nn.Module:
        """The tail of the network, or of its moving average, which has a front just like it."""
        return self.made.tail if model is self.made.model else split_at(model, self.made.block).tail


def compute_front(run: Run, stage: Stage, check: Check) -> Front | None:
    """Runs the front over the photos, or reads what it answered before; None where nothing is to be gained.

    Several processes get None: each would need the others' answers.

    Args:
        run: Its network is frozen as the stage wants it.
        stage: About to begin.
        check: Called after each batch.
    """
    views = stage.stored_views(len(run.split["train"]))
    if not views or run.world.size > 1:
        return None
    made = cut(run.model, run.info.preprocessing.size, run.runtime.channels_last)
    if made is None:
        log.info("store    this network cannot be cut in front of what trains; all of it runs in every epoch")
        return None
    train = answers(run, made, "train", stage.augment, views, check)
    validation = stored_part(run, made, "val", check)
    if train is None or validation is None:
        log.info("store    no room for what the frozen part answers; it runs in every epoch")
        return None
    size = train.numel() * train.dtype.itemsize / 2**20
    log.info(f"store    {views} views of each photo as {made.block} sees them, {size:.0f} MiB")
    return Front(made, train, validation)


def pooled_features(run: Run, photos: Sequence[int]) -> Tensor | None:
    """What the classifier sees of photos (N, D) while all in front of it is frozen; known ones are read.

    Args:
        run: Its network gets frozen.
        photos: By number in `run.photos`.

    Returns:
        None where the network cannot be cut in front of its classifier, or they exceed the budget.
    """
    apply_rules(run.model, rules_for(run.model, "head"))
    set_train_mode(run.model)
    made = cut(run.model, run.info.preprocessing.size, run.runtime.channels_last)
    if made is None:
        return None
    return answers(dataclasses.replace(run, split={"asked": list(photos)}), made, "asked", "none", 1, str)


def stored_part(run: Run, made: SplitModel, part: str, check: Check) -> CachedFeatureBatches | None:
    """What the front answers to the photos of a part as prediction sees them, in their order."""
    values = answers(run, made, part, "none", 1, check)
    if values is None:
        return None
    batches = part_batches(run, part)
    return CachedFeatureBatches(values, batches.labels, batches.order, batches.paths, run.runtime.device)


def answers(run: Run, made: SplitModel, part: str, policy: str, views: int, check: Check) -> Tensor | None:
    """The front's answers (views * photos, ...) to a part under an augmentation policy.

    Pooled features are float32, in memory; maps are bfloat16 with the channels last, in memory or in a file.
    None without room for them.
    """
    weights = _hash_front(made)
    if made.block == classifier_name(made.model):
        # Without looking at what photos take: these fit into a file as well, features do not.
        if 4 * made.width * views * len(run.split[part]) > run.budget():
            return None
        codes = [_hash_file(run.photos.root / run.photos.paths[index]) for index in run.split[part]]
        found = [_features(run, made, weights, part, codes, policy, view, check) for view in range(views)]
        return torch.cat(found)
    batches = part_batches(run, part, policy)
    count, store = len(batches.labels), None
    for view in range(views):
        for first, values in _compute(run, made, weights, batches, view, check):
            if store is None:
                shape = (views * count, *values.shape[1:])
                store = allocate(shape, torch.bfloat16, run.room(), cache_folder())
                if store is None:
                    return None
                run.stores.append(weakref.ref(store))
            store[view * count + first :][: len(values)] = values
    return store


def _features(
    run: Run, made: SplitModel, weights: str, part: str, codes: list[str], policy: str, view: int, check: Check
) -> Tensor:
    """Pooled features (photos, D) of a view: known ones from disk, the others computed and added there.

    The file is for one view under one front and holds a row for each photo that was ever asked for, by the
    hash of its bytes (`codes`). So another split, seed or fold asks for nothing twice.
    """
    photos = run.split[part]
    shown = _shown(policy, view)
    if not shown:  # only an identical run could use a random view again
        batches = part_batches(run, part, policy)
        return torch.cat([values for _, values in _compute(run, made, weights, batches, view, check)])
    info, runtime = run.info, run.runtime
    network = (weights, info.arch, sorted(info.model_options.items()), info.preprocessing)
    how = (runtime.precision, runtime.device.type, runtime.channels_last, run.config.batch_augment)
    software = (FORMAT, __version__, torch.__version__, torchvision.__version__, PIL.__version__)
    settings = (network, how, shown, software)
    name = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
    path = cache_folder() / "features" / f"{name}.safetensors"
    known, features = _read(path)
    missing = {code: index for code, index in zip(codes, photos, strict=True) if code not in known}
    if missing:
        batches = part_batches(dataclasses.replace(run, split={part: list(missing.values())}), part, policy)
        computed = [values for _, values in _compute(run, made, weights, batches, view, check)]
        features = torch.cat([features, *computed] if known else computed)
        known = [*known, *missing]
        try:
            safe_save({"features": features}, path, {"photos": known})
        except ResourceError as error:  # the cache is there to save time, not to end a run
            log.info(f"note     features are not kept for next time: {error}")
        prune_features(path.parent)
    row = {code: number for number, code in enumerate(known)}
    return features[[row[code] for code in codes]]


def prune_features(folder: Path) -> None:
    """Removes files of features that no run has used for long, then the oldest beyond the size allowed."""
    left = MOST_FEATURE_BYTES
    with contextlib.suppress(OSError):  # another process may prune too
        stats = sorted(((path.stat(), path) for path in folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
        for stat, path in stats:
            left -= stat.st_size
            if left < 0 or time.time() - stat.st_mtime > OLDEST_FEATURE_SECONDS:
                path.unlink(missing_ok=True)


def _shown(policy: str, view: int) -> str:
    """What a view shows where chance has no part in it, else nothing."""
    if policy == "none" or (policy == "mirror" and view % 2 == 0):
        return "the photo"
    return "the photo mirrored" if policy == "mirror" else ""


def _compute(
    run: Run, made: SplitModel, weights: str, batches: TrainingBatches, view: int, check: Check
) -> Iterator[tuple[int, Tensor]]:
    """Runs the front over a view, batch by batch: (place of the first photo, answers)."""
    made.model.eval()
    images = run.runtime.images(noise(run.info.preprocessing.size))
    made.speed_up(images, run.runtime.dtype, weights)
    batches.order.epoch, done = view, 0
    with bar(f"view {view + 1}", len(batches.labels)) as meter:
        for images, _, _ in batches:
            # On a CPU a few at a time: its caches hold these, and no layer has to ask for fresh memory.
            parts = images.split(CPU_PHOTOS) if run.runtime.device.type == "cpu" else [images]
            with run.runtime.autocast():
                fronts = [made.front(run.runtime.images(part)) for part in parts]
            values = torch.cat(fronts).float().cpu()
            yield done, values.permute(0, 2, 3, 1) if values.ndim == 4 else values
            done += len(values)
            meter.update(len(values))
            check(len(values))


def _hash_front(made: SplitModel) -> str:
    digest = hashlib.blake2b(f"{type(made.model).__name__} {made.block}".encode())
    for name, value in sorted(made.model.state_dict().items()):
        if not name.startswith(f"{made.block}."):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


def _read(path: Path) -> tuple[list[str], Tensor]:
    """Photos and features of a file; none where it is missing or damaged: it will be written anew."""
    try:
        tensors, metadata = safe_load(path)
        with contextlib.suppress(OSError):
            os.utime(path)  # pruning goes by the last use
        return list(metadata["photos"]), tensors["features"]
    except (ModelFileError, KeyError):
        return [], torch.empty(0)
