"""What the frozen front of a network answers to the photos, computed once instead of in every epoch.

A stage whose first blocks are frozen asks them the same question again and again. Here they answer to a few
augmented views of each training photo and to each validation photo, and only the tail is trained, on the
stored answers. The pooled features in front of a classifier are kept on disk too, under a key of everything
that they depend on: weights, photos, preprocessing, views, precision.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.config import Stage
from flowers_torch.data.batches import TrainingBatches
from flowers_torch.data.images import open_regular
from flowers_torch.data.stored import StoredBatches, allocate
from flowers_torch.errors import ModelFileError
from flowers_torch.files import cache_folder, safe_load, safe_save
from flowers_torch.models.cut import Cut, cut, cut_at
from flowers_torch.models.heads import classifier_name
from flowers_torch.prepare import Run, part_batches
from flowers_torch.training.monitors import bar, log

HEAD_VIEWS = 2  # of each photo, where only the head trains and nothing else was asked for
Check = Callable[[int], Any]  # called with the number of photos of each batch; may raise to stop


@dataclasses.dataclass(frozen=True)
class Front:
    """A cut network, and what its front answers to each view of the photos."""

    made: Cut
    training: Tensor  # (views * photos, ...)
    validation: StoredBatches

    def tail_of(self, model: nn.Module) -> nn.Module:
        """The tail of the network, or of its moving average, which has a front just like it."""
        return self.made.tail if model is self.made.model else cut_at(model, self.made.block).tail


def views_of(stage: Stage) -> int:
    """How many views of a photo a stage stores; 0 where it stores nothing."""
    wanted = stage.views
    if wanted < 0:
        wanted = HEAD_VIEWS if stage.train == "head" and not stage.rules else 0
    mixes = stage.mixup > 0 or stage.cutmix > 0  # these blend photos, not answers
    if mixes or stage.batch_norm == "adapt":
        return 0
    return wanted if stage.optimizer == "lbfgs" else min(wanted, stage.epochs)


def compute_front(run: Run, stage: Stage, check: Check) -> Front | None:
    """Runs the front over the photos, or reads what it answered before; None where nothing is to be gained.

    Several processes get None: each would need the others' answers.

    Args:
        run: Its network is frozen as the stage wants it.
        stage: About to begin.
        check: Called after each batch.
    """
    views = views_of(stage)
    if not views or run.world.size > 1:
        return None
    made = cut(run.model, run.record.preprocessing.size, run.runtime.channels_last)
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


def stored_part(run: Run, made: Cut, part: str, check: Check) -> StoredBatches | None:
    """What the front answers to the photos of a part as prediction sees them, in their order."""
    values = answers(run, made, part, "none", 1, check)
    if values is None:
        return None
    batches = part_batches(run, part)
    return StoredBatches(values, batches.labels, batches.order, batches.paths)


def answers(run: Run, made: Cut, part: str, policy: str, views: int, check: Check) -> Tensor | None:
    """The front's answers (views * photos, ...) to a part under an augmentation policy; None without room.

    Pooled features are float32, maps bfloat16 with the channels last.
    """
    batches = part_batches(run, part, policy)
    pooled = made.block == classifier_name(made.model)
    folder = cache_folder() / "features"
    weights = _weights_key(made) if pooled else ""
    photos = _photos_key(batches.paths) if pooled else ""
    store: Tensor | None = None
    for view in range(views):
        place = slice(view * len(batches.labels), (view + 1) * len(batches.labels))
        settings = (run.record.preprocessing, run.runtime.precision, _view_key(run, policy, view))
        key = hashlib.sha256(repr((weights, photos, settings, torch.__version__)).encode()).hexdigest()
        path = folder / f"{key[:32]}.safetensors"
        known = _read(path) if pooled else None
        if known is None:
            computed = _compute(run, made, batches, view, check)
        for start, values in [(0, known)] if known is not None else computed:
            if store is None:
                shape = (views * len(batches.labels), *values.shape[1:])
                memory = int(run.config.store_gib * 2**30)
                store = allocate(shape, torch.float32 if pooled else torch.bfloat16, memory, folder)
            if store is None:
                return None
            store[place][start : start + len(values)] = values
        if pooled and known is None and store is not None:
            safe_save({"answers": store[place]}, path, {})
    return store


def _compute(run: Run, made: Cut, batches: TrainingBatches, view: int, check: Check) -> Any:
    """Yields (position of the first, answers) batch by batch."""
    made.model.eval()
    batches.order.epoch, done = view, 0
    with bar(f"view {view + 1}", len(batches.labels)) as meter:
        for images, _, _ in batches:
            with run.runtime.autocast():
                values = made.front(run.runtime.images(images)).float().cpu()
            yield done, values.permute(0, 2, 3, 1) if values.ndim == 4 else values
            done += len(values)
            meter.update(len(values))
            check(len(values))


def _view_key(run: Run, policy: str, view: int) -> Any:
    """What a view shows; the first view of `mirror` is the plain photo, whatever the seed."""
    if policy == "none" or (policy == "mirror" and view % 2 == 0):
        return "plain"
    return "mirrored" if policy == "mirror" else (policy, run.config.batch_augment, run.config.seed, view)


def _weights_key(made: Cut) -> str:
    digest = hashlib.blake2b(type(made.model).__name__.encode())
    for name, value in sorted(made.model.state_dict().items()):
        if not name.startswith(f"{made.block}."):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _photos_key(paths: list[Path]) -> str:
    digest = hashlib.blake2b()
    for path in paths:
        with open_regular(path) as file:
            digest.update(hashlib.blake2b(file.read()).digest())
    return digest.hexdigest()


def _read(path: Path) -> Tensor | None:
    try:
        return safe_load(path)[0]["answers"] if path.exists() else None
    except (ModelFileError, KeyError):
        return None  # damaged: computed anew and written again
