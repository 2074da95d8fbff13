"""Exact duplicates (the same bytes) and near-duplicates (the same image, re-encoded, scaled or mirrored).

A pair across train and test makes the test result too good; a pair across classes contradicts itself.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import load_image
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.splits.assign import group_pairs

BANDS = 8  # hashes that differ in fewer bits than there are bands agree in at least one band
MIN_CONTRAST = 4.0  # the hash of a blank image is meaningless
# On Flowers-17, true pairs have at least 0.995 and the nearest false pair has 0.90.
MIN_CORRELATION = 0.98
COMPARE_SIDE = 32
BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)
MIN_COSINE = 0.93  # between the features of a backbone


def exact_duplicates(inspections: Sequence[Inspection]) -> list[list[int]]:
    """Groups of images whose files have the same bytes."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, inspection in enumerate(inspections):
        if inspection.sha256:
            by_digest[inspection.sha256].append(index)
    return [group for group in by_digest.values() if len(group) > 1]


def near_duplicates(
    dataset: ImageDataset, inspections: Sequence[Inspection], features: np.ndarray | None = None
) -> list[list[int]]:
    """Groups of near-duplicates and exact duplicates.

    Candidates share most bits of their perceptual hashes and are compared pixel by pixel at 32 x 32. Nearly
    parallel features of a backbone (N, D), zeros for unreadable images, make a pair too: they find crops and edits.
    """
    thumbnail = functools.lru_cache(maxsize=4096)(lambda index: _thumbnail(dataset, index))
    pairs = [(group[0], other) for group in exact_duplicates(inspections) for other in group[1:]]
    for i, j, mirrored in hash_candidates(inspections):
        other = thumbnail(j)[:, ::-1] if mirrored else thumbnail(j)
        if _correlation(thumbnail(i), other) >= MIN_CORRELATION:
            pairs.append((i, j))
    if features is not None:
        pairs += _parallel_pairs(features)
    return group_pairs(pairs)


def hash_candidates(inspections: Sequence[Inspection]) -> list[tuple[int, int, bool]]:
    """Pairs i < j whose hashes differ in fewer than `BANDS` bits, and whether j is mirrored."""
    usable = [i for i, image in enumerate(inspections) if image.phash and image.contrast >= MIN_CONTRAST]
    upright = np.array([int(inspections[i].phash, 16) for i in usable], dtype=np.uint64)
    mirrored = np.array([int(inspections[i].phash_mirrored, 16) for i in usable], dtype=np.uint64)
    found: dict[tuple[int, int], bool] = {}
    for others, flag in ((mirrored, True), (upright, False)):  # a pair found both ways counts as upright
        for a, b in _close_pairs(upright, others):
            if a < b:
                found[usable[a], usable[b]] = flag
    return [(i, j, flag) for (i, j), flag in sorted(found.items())]


def _close_pairs(hashes: np.ndarray, others: np.ndarray) -> set[tuple[int, int]]:
    """Positions (a, b) of hashes that differ in few bits; only hashes that agree in a band are compared."""
    close: set[tuple[int, int]] = set()
    for band in range(BANDS):
        shift = np.uint64(band * 64 // BANDS)
        keys = (hashes >> shift).astype(np.uint8)
        other_keys = (others >> shift).astype(np.uint8)
        for key in np.unique(keys):
            left, right = np.flatnonzero(keys == key), np.flatnonzero(other_keys == key)
            for start in range(0, len(left), 1024):
                block = left[start : start + 1024]
                a, b = np.nonzero(_count_bits(hashes[block][:, None] ^ others[right]) < BANDS)
                close.update(zip(block[a].tolist(), right[b].tolist(), strict=True))
    return close


def _count_bits(values: np.ndarray) -> np.ndarray:
    """Number of ones in each uint64. (`np.bitwise_count` needs NumPy 2.)"""
    ones = BITS_OF_BYTE[np.ascontiguousarray(values).view(np.uint8)]
    return ones.reshape(*values.shape, 8).sum(-1, dtype=np.uint8)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two images (H, W, 3) after centering each channel; 1 for equal images."""
    a, b = a - a.mean((0, 1)), b - b.mean((0, 1))
    return float((a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-9))


def _thumbnail(dataset: ImageDataset, index: int) -> np.ndarray:
    image = load_image(dataset.root / dataset.paths[index], at_least=2 * COMPARE_SIDE)
    return np.asarray(image.resize((COMPARE_SIDE, COMPARE_SIDE), Image.Resampling.BOX), dtype=np.float32)


def _parallel_pairs(features: np.ndarray) -> list[tuple[int, int]]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(norms, 1e-12)).astype(np.float32)
    pairs = []
    for start in range(0, len(unit), 1024):
        a, b = np.nonzero(unit[start : start + 1024] @ unit.T >= MIN_COSINE)
        pairs += [(start + i, j) for i, j in zip(a.tolist(), b.tolist(), strict=True) if start + i < j]
    return pairs
