"""Features of a frozen backbone: what its head sees of each image, computed once instead of in every epoch.

Features of an image and of its mirror image are also cached on disk. The key is everything that they depend on:
weights, preprocessing, precision, software and the bytes of the image. Several processes divide the batches that one
process would compute among them, so the features are the same to the bit. The main one owns the files.
"""

import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import PIL
import torch
from torch import Tensor, nn

from flowers_torch import __version__
from flowers_torch.accelerate import Acceleration
from flowers_torch.data.images import open_regular
from flowers_torch.data.loading.batches import CPU_IMAGES, TrainingBatches
from flowers_torch.data.loading.gpu_cache import CachedFeatureBatches
from flowers_torch.errors import UsageError, plural
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.threads import map_in_threads
from flowers_torch.log import bar, log
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.heads import classifier_names, hash_backbone, shared_copy
from flowers_torch.models.split_model import SplitModel, example_inputs, split_model
from flowers_torch.runs.feature_files import FeatureFiles, rows_of_shard
from flowers_torch.runs.loaders import Loaders

FORMAT = 5  # of the files; raised whenever the same image would give other features
SETS_FRACTION = 1 / 8  # of the memory for features, for those of all sets of a network

Check = Callable[[int], Any]  # called with the number of images of each batch; may raise to stop
Compute = Callable[[Sequence[int]], Iterator[Tensor]]  # features of images, block by block
Keep = Callable[[Tensor], Tensor]  # features -> those of a feature set


class FeatureCache:
    """Computes features in front of the head, or reads those that are known. `max_bytes` limits each call."""

    def __init__(self, loaders: Loaders, info: ModelInfo, acceleration: Acceleration, max_bytes: int) -> None:
        self.loaders, self.info, self.acceleration, self.max_bytes = loaders, info, acceleration, max_bytes
        self.runtime, self.distributed = loaders.runtime, loaders.distributed
        self._fused: tuple[str, nn.Module] | None = None  # hash of a backbone's weights, and its faster copy
        self._split: tuple[object, SplitModel | None] = (None, None)  # what was split, and in what
        self._digests: dict[int, str] = {}  # of images that were read, by index

    def split(self, model: nn.Module) -> SplitModel | None:
        """The network split in front of its head, or None where it does not compute the same in two parts."""
        classifiers = [model.get_submodule(name) for name in classifier_names(model)]
        what = [model, getattr(model, "feature_set", ""), *classifiers]
        if self._split[0] != what:
            self._split = what, split_model(model, self.info.preprocessing.size)
        return self._split[1]

    def features(
        self,
        split: SplitModel,
        indices: Sequence[int],
        augmentation: str = "none",
        views: int = 1,
        check: Check = lambda images: None,
        every: bool = False,
    ) -> Tensor | None:
        """Features (views * images, D), one view after the other, on the CPU; None if they exceed the memory.

        Those of the head's feature set, or with `every` those that all sets of the network consist of.

        Files on disk hold each fixed view under each backbone, with a row for each image that was ever requested.
        Another split, seed or fold therefore computes nothing twice.
        """
        if augmentation == "mirror" and not self.info.mirror:
            views = 1  # the others would repeat it
        width = split.width if every or not split.sets else len(split.sets[split.feature_set].columns)
        # Fitting a head to each of several sets copies their features some times.
        limit = self.max_bytes * (SETS_FRACTION if every and split.sets else 1)
        if 4 * width * views * len(indices) > limit:
            return None
        keep: Keep = (lambda rows: rows) if every else split.select
        found = torch.empty(views * len(indices), width)
        weights = _hash_backbone(split)
        for view, rows in enumerate(found.view(views, len(indices), width)):

            def compute(wanted: Sequence[int], view: int = view) -> Iterator[Tensor]:
                batches = self.loaders.in_order(wanted, augmentation, once=views == 1)
                batches.order.epoch = view
                return self._compute(split, weights, batches, check)

            shown = _fixed_view(augmentation, view)
            if shown:
                self._cached(self._files(weights, shown, split.width), indices, compute, rows, keep)
            else:  # only an identical run could use a random view again
                start = 0
                for computed in compute(indices):
                    rows[start : start + len(computed)] = keep(computed)
                    start += len(computed)
        return found

    def _cached(self, files: FeatureFiles, indices: Sequence[int], compute: Compute, found: Tensor, keep: Keep) -> None:
        """Fills the rows of `found` for images from files; those that they lack are computed and added.

        Beside `found` one shard of the files is in memory.
        """
        hashes, place = self._hash_images(indices), dict[str, int]()
        first = [place.setdefault(code, row) for row, code in enumerate(hashes)]  # of images with the same bytes
        missing = dict(zip(hashes, indices, strict=True))

        def fill(codes: Sequence[str], features: Tensor) -> None:
            wanted = [row for row, code in enumerate(codes) if code in place]
            found[[place[codes[row]] for row in wanted]] = keep(features[wanted])

        if self.distributed.is_main:
            for codes, features in files.shards():
                fill(codes, features)
                for code in codes:
                    missing.pop(code, None)
        missing = self.distributed.broadcast(missing)
        codes, start = list(missing), 0
        for features in compute(list(missing.values())) if missing else ():
            block = codes[start : start + len(features)]
            start += len(features)
            if self.distributed.is_main:
                files.add(block, features)
                fill(block, features)
        repeated = [row for row, leader in enumerate(first) if row != leader]
        found[repeated] = found[[first[row] for row in repeated]]
        self.distributed.broadcast_tensors([found])

    def of_pixels(self, name: str, width: int, function: Callable[[Tensor], Tensor], indices: Sequence[int]) -> Tensor:
        """Features (N, `width`) that a function computes from batches of inputs, without a network; cached by a name.

        Of several processes only one may ask.
        """

        def compute(missing: Sequence[int]) -> Iterator[Tensor]:
            yield torch.cat([function(images).cpu() for images, *_ in self.loaders.in_order(missing)])

        found = torch.empty(len(indices), width)
        self._cached(self._files("", name, width), indices, compute, found, lambda rows: rows)
        return found

    def of_frozen(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        """Freezes everything but the head of a network, and computes the features (N, D) of images.

        Raises: as `sets_of_frozen`.
        """
        sets = self.sets_of_frozen(model, indices, every=False)
        return sets[getattr(model, "feature_set", "")]

    def sets_of_frozen(self, model: nn.Module, indices: Sequence[int], every: bool = True) -> dict[str, Tensor]:
        """Freezes everything but the head of a network; the features (N, D) of images, of each feature set.

        With `every` false, or where those of all sets take too much memory, only of the set that the head takes.

        Raises:
            UsageError: the network cannot be split in front of its head, or the features exceed the memory.
        """
        apply_rules(model, rules_for(model, "head"))
        set_train_mode(model)
        split = self.split(model)
        features = self.features(split, indices, every=every) if split else None
        if split and features is None and every:
            return self.sets_of_frozen(model, indices, every=False)
        if split is None or features is None:
            what = f"{self.info.arch} cannot be split in front of its head, or its features exceed cache_gib"
            raise UsageError(what, "choose another network, or raise cache_gib")
        if not every:
            return {split.feature_set: features}
        return {name: split.select(features, name) for name in split.sets or [split.feature_set]}

    def batches(
        self, split: SplitModel, indices: Sequence[int], check: Check = lambda images: None, every: bool = False
    ) -> CachedFeatureBatches | None:
        """This process's batches of features of images as prediction sees them, in their order."""
        features = self.features(split, indices, check=check, every=every)
        if features is None:
            return None
        source = self.loaders.in_order(indices)
        return CachedFeatureBatches(features, source.labels, source.order, source.paths, self.runtime.device)

    def _files(self, weights: str, shown: str, width: int) -> FeatureFiles:
        info, runtime = self.info, self.runtime
        network = (weights, info.arch, sorted(info.model_options.items()), info.preprocessing)
        how = (runtime.precision, runtime.device.type, "fusion" in self.acceleration.tricks)
        software = (FORMAT, __version__, torch.__version__, PIL.__version__)
        key = hashlib.sha256(repr((network, how, shown, software)).encode()).hexdigest()[:32]
        return FeatureFiles(cache_folder() / "features", key, width)

    def _hash_images(self, indices: Sequence[int]) -> list[str]:
        """A digest of the bytes of each image, which is read once; each process reads its shard."""
        new = [index for index in indices if index not in self._digests]
        if new:
            dataset, block = self.loaders.dataset, self.loaders.batch_size
            own = bytearray()
            for index in self.distributed.shard(new, block):
                with open_regular(dataset.root / dataset.paths[index]) as file:
                    own += hashlib.blake2b(file.read(), digest_size=16).digest()
            digests = torch.frombuffer(own, dtype=torch.uint8).view(-1, 16)
            rows = self.distributed.gather(digests, len(new), block).numpy()
            self._digests |= zip(new, (bytes(row).hex() for row in rows), strict=True)
        return [self._digests[index] for index in indices]

    def _compute(self, split: SplitModel, weights: str, batches: TrainingBatches, check: Check) -> Iterator[Tensor]:
        """The features (N, D) of images, from all processes, in blocks that about fill a shard of the files."""
        images, size, processes = len(batches.labels), self.loaders.batch_size, self.distributed.size
        if processes > 1:
            shard = f"{len(batches)} of {-(-images // size)} batches in each of {processes} processes"
            log.info(f"features of {plural(images, 'photo')}: {shard}")
        turns = max(1, rows_of_shard(split.width) // (size * processes))  # of all processes, in a block
        outputs, start = self._run_backbone(split, weights, batches, check), 0
        while own := list(itertools.islice(outputs, turns)):
            self.runtime.wait()
            count = min(images - start, turns * size * processes)
            start += count
            yield self.distributed.gather(torch.cat(own), count, size)

    def _run_backbone(
        self, split: SplitModel, weights: str, batches: TrainingBatches, check: Check
    ) -> Iterator[Tensor]:
        """Runs the backbone over this process's batches; what it yields may be read after `Runtime.wait`."""
        split.model.eval()
        runtime, network = self.runtime, self._fast_backbone(split, weights)
        threads = self.acceleration.threads(runtime)
        networks: SimpleQueue[nn.Module] = SimpleQueue()  # a thread hooks the copy that it runs
        for _ in range(threads):
            networks.put(shared_copy(network) if threads > 1 else network)
        counts: deque[int] = deque()  # of chunks in each batch

        def chunks() -> Iterator[Tensor]:
            for images, *_ in batches:
                # A few at a time on a CPU: its caches hold them, and no layer needs fresh memory.
                parts = images.split(CPU_IMAGES) if runtime.device.type == "cpu" else (images,)
                counts.append(len(parts))
                yield from parts

        def compute(chunk: Tensor) -> Tensor:
            own = networks.get()
            try:
                with runtime.autocast():
                    return split.backbone(runtime.images(chunk), own)
            finally:
                networks.put(own)

        with bar(f"view {batches.order.epoch + 1}", len(batches.labels)) as meter:
            computed = map_in_threads(compute, chunks(), threads, ahead=2)
            for first in computed:
                outputs = torch.cat([first, *itertools.islice(computed, counts.popleft() - 1)])
                yield runtime.to_host(outputs.float())
                meter.update(len(outputs))
                check(len(outputs))

    def _fast_backbone(self, split: SplitModel, weights: str) -> nn.Module:
        if self._fused is None or self._fused[0] != weights:
            example = self.runtime.images(example_inputs(self.info.preprocessing.size))
            forward = functools.partial(split.backbone, example)
            self._fused = weights, self.acceleration.frozen_network(split.model, forward, self.runtime.dtype)
        return self._fused[1]


def _fixed_view(augmentation: str, view: int) -> str:
    """What a view shows where nothing about it is random, else an empty text."""
    if augmentation == "none" or (augmentation == "mirror" and view % 2 == 0):
        return "image"
    return "mirror image" if augmentation == "mirror" else ""


def _hash_backbone(split: SplitModel) -> str:
    kind = [type(split.model).__name__, *split.classifiers, *split.sets]
    digest = hashlib.blake2b(" ".join(kind).encode())
    hash_backbone(split.model, split.classifiers, digest)
    return digest.hexdigest()
