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
MANY, FEW_BITS = 50_000, 7  # images from which on hashes differ in at most so many bits
BLOCK = 1 << 20  # pairs of hashes that are compared together
ROWS = 256  # images of a large set that are handled together
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
    groups = dict(copies)  # the others are alone
    for own, leader in enumerate(first):
        if own != leader:
            joined = groups.pop(usable[own], [usable[own]])
            groups[usable[leader]] = groups.get(usable[leader], [usable[leader]]) + joined
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
    for rows, columns, close in hash_candidates(images, mirrored):
        known = np.union1d(columns, first[columns])
        place[known] = np.arange(len(known))
        thumbnails.prepare(np.union1d(rows, known))
        likenesses = thumbnails.correlate(rows, known, mirrored)
        for own, candidates, likeness in zip(rows.tolist(), close, likenesses, strict=True):
            leaders = np.unique(first[columns[candidates]])
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


# Rows, columns, and whether the hash of each row is close to that of each column, (rows, columns).
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]


def hash_candidates(images: Sequence[Inspection], mirrored: bool = True) -> Iterator[Candidates]:
    """Blocks of images whose hashes are close to those of earlier images; with `mirrored`, either may be mirrored.

    The hashes of up to `MANY` images differ in at most `MAX_BITS` bits. Comparing each with each takes a time that is
    proportional to the square of the number; of more images, `close_in_large_set` compares only those that share a
    part, and so finds hashes that differ in at most `FEW_BITS`.
    """
    names = ("phash", "phash_mirrored") if mirrored else ("phash",)
    hashes = [[getattr(image, name) for image in images] for name in names]
    if len(images) > MANY:
        yield from close_in_large_set([_words(texts) for texts in hashes])
        return
    upright, *flipped = map(_signs, hashes)
    step = max(1, BLOCK // max(1, len(images)))
    limit = 64 - 2 * MAX_BITS  # the product of signs is the number of equal bits less that of others
    for start in range(0, len(images), step):
        block = upright[start : start + step]
        end = start + len(block)
        close = block @ upright[:end].T >= limit
        for other in flipped:
            close |= block @ other[:end].T >= limit
        close = np.tril(close, start - 1)
        rows, columns = np.flatnonzero(close.any(1)), np.flatnonzero(close.any(0))
        if len(rows):
            yield start + rows, columns, close[np.ix_(rows, columns)]


def close_in_large_set(hashes: Sequence[np.ndarray]) -> Iterator[Candidates]:
    """`hash_candidates` of a large set, from the words (N,) of its images, and of their mirror images.

    Of two hashes that differ in at most `FEW_BITS` = 7 bits, one of the four parts of 16 bits differs in at most one.
    Blocks of images have equally many candidates, so memory is bounded also where all images look alike.
    """
    count = len(hashes[0])
    tables = [(shift, words, *_sorted_by_word(words, shift)) for shift in range(0, 64, 16) for words in hashes]
    candidates = np.zeros(count, dtype=np.int64)
    for shift, _, _, edges in tables:
        for keys in _neighboring_keys(hashes[0], shift):
            candidates += edges[keys + 1] - edges[keys]
    total, start = np.cumsum(candidates), 0
    while start < count:
        done = int(total[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(total, done + BLOCK, side="right")))
        found = [_close_pairs(hashes[0], start, end, *table) for table in tables]
        pairs = np.unique(np.concatenate(found, axis=1), axis=1)  # sorted by image
        images, edges = np.unique(pairs[0], return_index=True)
        for first in range(0, len(images), ROWS):
            stop = edges[first + ROWS] if first + ROWS < len(images) else pairs.shape[1]
            block = pairs[:, edges[first] : stop]
            rows, row = np.unique(block[0], return_inverse=True)
            columns, column = np.unique(block[1], return_inverse=True)
            close = np.zeros((len(rows), len(columns)), dtype=bool)
            close[row, column] = True
            yield rows, columns, close
        start = end


def _sorted_by_word(words: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The images in the order of a part of their hashes, and the place where each of the 2**16 values begins."""
    keys = (words >> np.uint64(shift)).astype(np.uint16)
    order = np.argsort(keys, kind="stable")
    return order, np.searchsorted(keys[order], np.arange((1 << 16) + 1))


def _neighboring_keys(words: np.ndarray, shift: int) -> Iterator[np.ndarray]:
    """A part of hashes, and the 16 values that differ from it in one bit."""
    keys = (words >> np.uint64(shift)).astype(np.uint16)
    for flip in (0, *(1 << bit for bit in range(16))):
        yield (keys ^ np.uint16(flip)).astype(np.int64)


def _close_pairs(
    upright: np.ndarray, start: int, end: int, shift: int, words: np.ndarray, order: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """Pairs (2, P) of an image of a block and an earlier one, whose hashes are close and nearly share a part."""
    found, images = [np.empty((2, 0), dtype=np.int64)], np.arange(start, end)
    for keys in _neighboring_keys(upright[start:end], shift):
        counts = edges[keys + 1] - edges[keys]
        own = np.repeat(images, counts)
        offset = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
        other = order[np.repeat(edges[keys], counts) + offset]
        close = (other < own) & (_count_bits(upright[own] ^ words[other]) <= FEW_BITS)
        found.append(np.stack([own[close], other[close]]))
    return np.concatenate(found, axis=1)


def _count_bits(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    return np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(1)


def _words(hashes: list[str]) -> np.ndarray:
    """Hashes as 64-bit words (N,)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8").astype(np.uint64)


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
