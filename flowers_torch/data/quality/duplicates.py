"""Exact duplicates (the same bytes) and near-duplicates (the same picture, re-encoded, scaled or mirrored).

A pair across train and test makes the test result too good; a pair across classes contradicts itself. Different
pictures can look alike, such as coins, X-rays, pages or frames of a video. So every near-duplicate is compared, window
by window, with the image whose group it joins; there are no chains.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.quality.thumbnails import Thumbnails
from flowers_torch.data.splits.assign import group_pairs
from flowers_torch.data.value_range import range_of

MAX_BITS = 12  # in which the hashes of duplicates differ, of 64
MIN_CONTRAST = 4.0  # the hash of a blank image is meaningless
MAX_COMPARED = 8  # groups that an image is compared with, those whose thumbnails correlate most
MIN_LIKENESS, LOOK_ALIKE = 0.9, 0.98  # correlation of thumbnails of copies, and of look-alikes
BLOCK = 1 << 20  # pairs that are handled together
MIN_COSINE = 0.93  # between the features of a backbone


@dataclass(frozen=True)
class Duplicates:
    """Groups of duplicates. Every image of a group was compared with the first, which is the largest."""

    groups: list[list[int]]
    mirrored: frozenset[int] = frozenset()  # mirror images of the first image of their group
    look_alikes: list[list[int]] = field(default_factory=list)  # groups of different pictures


def exact_duplicates(inspections: Sequence[Inspection]) -> list[list[int]]:
    """Groups of images whose files have the same bytes."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, inspection in enumerate(inspections):
        if inspection.sha256:
            by_digest[inspection.sha256].append(index)
    return [group for group in by_digest.values() if len(group) > 1]


def near_duplicates(dataset: ImageDataset, inspections: Sequence[Inspection], mirrored: bool = True) -> Duplicates:
    """Finds exact and near-duplicates in memory that is proportional to the number of images.

    Candidates share most bits of their perceptual hashes. Each joins the group of a larger image that shows the same
    picture by `Thumbnails.same`. Without `mirrored`, a mirror image is another picture.
    """
    copies = {group[0]: group for group in exact_duplicates(inspections)}
    repeated = {i for group in copies.values() for i in group[1:]}
    usable = [i for i, x in enumerate(inspections) if x.phash and x.contrast >= MIN_CONTRAST and i not in repeated]
    usable.sort(key=lambda i: (inspections[i].colorfulness < 1, -inspections[i].width * inspections[i].height, i))
    images = [inspections[i] for i in usable]
    thumbnails = Thumbnails(dataset, usable, [min(image.width, image.height) for image in images])
    thumbnails.ranges = [range_of(image.values) for image in images]
    first, flips, alike = _join(images, thumbnails, mirrored)
    groups = {i: copies.get(i, [i]) for i in (*usable, *copies)}
    for own, leader in enumerate(first):
        if own != leader:
            groups[usable[leader]] = groups[usable[leader]] + groups.pop(usable[own])
    flipped = frozenset(i for own in flips for i in copies.get(usable[own], [usable[own]]))
    found = sorted((g[:1] + sorted(g[1:]) for g in groups.values() if len(g) > 1), key=min)
    return Duplicates(found, flipped, group_pairs((usable[a], usable[b]) for a, b in alike))


def _join(
    images: list[Inspection], thumbnails: Thumbnails, mirrored: bool
) -> tuple[list[int], set[int], list[tuple[int, int]]]:
    """For each image, the first of its group; the mirrored ones; pairs of look-alikes, at most one for each image."""
    first = np.arange(len(images))
    flips: set[int] = set()
    alike: list[tuple[int, int]] = []
    place = np.zeros(len(images), dtype=np.int64)
    for start, close in hash_candidates(images, mirrored):
        rows, columns = np.flatnonzero(close.any(1)), np.flatnonzero(close.any(0))
        columns = np.union1d(columns, first[columns])
        place[columns] = np.arange(len(columns))
        thumbnails.prepare(np.union1d(start + rows, columns))
        for row, likeness in zip(rows, thumbnails.correlate(start + rows, columns, mirrored), strict=True):
            own, leads = start + int(row), np.zeros(close.shape[1], dtype=bool)
            leads[first[: close.shape[1]][close[row]]] = True
            leaders = np.flatnonzero(leads)
            values = likeness[place[leaders]]
            if len(leaders) > MAX_COMPARED:
                best = np.argpartition(-values, MAX_COMPARED)[:MAX_COMPARED]
                leaders, values = leaders[best], values[best]
            for value, leader in sorted(zip((-values).tolist(), leaders.tolist(), strict=True)):
                flip = mirrored and thumbnails.is_mirrored(own, leader)
                if -value >= MIN_LIKENESS and thumbnails.same(own, leader, flip):
                    first[own] = leader
                    flips |= {own} if flip else set()
                    break
            else:
                if values.max() >= LOOK_ALIKE:
                    alike.append((own, int(leaders[values.argmax()])))
    return first.tolist(), flips, alike


def hash_candidates(images: Sequence[Inspection], mirrored: bool = True) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows, each with its first row and whether a row's hash is close to that of each earlier image.

    A block has the shape (rows, end of the block). With `mirrored`, either image may be.
    """
    upright, flipped = (_signs([getattr(image, name) for image in images]) for name in ("phash", "phash_mirrored"))
    rows = max(1, BLOCK // max(1, len(images)))
    limit = 64 - 2 * MAX_BITS  # the product of signs is the number of equal bits less that of others
    for start in range(0, len(images), rows):
        block = upright[start : start + rows]
        end = start + len(block)
        close = block @ upright[:end].T >= limit
        if mirrored:
            close |= block @ flipped[:end].T >= limit
        yield start, np.tril(close, start - 1)


def _signs(hashes: list[str]) -> np.ndarray:
    """The bits of hashes, as -1 and 1 (N, 64)."""
    raw = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(-1, 8)
    return np.unpackbits(raw, axis=1).astype(np.float32) * 2 - 1


def similar_features(features: np.ndarray) -> list[list[int]]:
    """Groups of images whose features (N, D) are nearly parallel to those of the first; zeros are in none."""
    unit = (features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    first = np.arange(len(unit))
    groups: dict[int, list[int]] = defaultdict(list)
    for start in range(0, len(unit), 256):
        for own, cosines in enumerate(unit[start : start + 256] @ unit[: start + 256].T, start):
            cosines = np.where(first[:own] == np.arange(own), cosines[:own], 0)
            if own and cosines.max() >= MIN_COSINE:
                first[own] = cosines.argmax()
            groups[int(first[own])].append(own)
    return [group for group in groups.values() if len(group) > 1]
