"""Photos that are there twice: the same bytes, or the same picture stored again, scaled or mirrored.

A twin pair with one photo in training and one in the test makes the test's number too good; under two labels
it teaches nonsense.
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

BANDS = 8  # hashes that differ in fewer bits than there are bands agree in one band at least
MIN_CONTRAST = 4.0  # the hash of a blank picture says nothing
# On Flowers-17 true pairs have 0.995 and more, the nearest false one 0.90.
MIN_CORRELATION = 0.98
COMPARE_SIDE = 32
MIN_COSINE = 0.93  # of a backbone's features


def exact_duplicates(inspections: Sequence[Inspection]) -> list[list[int]]:
    """Groups of photos whose files have the same bytes."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, inspection in enumerate(inspections):
        if inspection.sha256:
            by_digest[inspection.sha256].append(index)
    return [group for group in by_digest.values() if len(group) > 1]


def near_duplicates(
    photos: ImageDataset, inspections: Sequence[Inspection], features: np.ndarray | None = None
) -> list[list[int]]:
    """Groups of photos that show the same picture, mirrored or not; groups of the same bytes included.

    Candidates share most of the bits of their perceptual hash and are then compared pixel by pixel at
    32 x 32. With features of a backbone, photos whose features are nearly parallel join them: crops and
    edits that move the hash.

    Args:
        photos: The set.
        inspections: Of each photo.
        features: (N, D), zeros for unreadable photos.
    """
    thumbnail = functools.lru_cache(maxsize=4096)(lambda index: _thumbnail(photos, index))
    pairs = [(group[0], other) for group in exact_duplicates(inspections) for other in group[1:]]
    for i, j, mirrored in hash_candidates(inspections):
        other = thumbnail(j)[:, ::-1] if mirrored else thumbnail(j)
        if correlation(thumbnail(i), other) >= MIN_CORRELATION:
            pairs.append((i, j))
    if features is not None:
        pairs += _parallel(features)
    return group_pairs(pairs)


def hash_candidates(inspections: Sequence[Inspection]) -> list[tuple[int, int, bool]]:
    """Pairs i < j whose hashes differ in fewer than `BANDS` bits, and whether j is seen in a mirror."""
    usable = [i for i, seen in enumerate(inspections) if seen.phash and seen.contrast >= MIN_CONTRAST]
    upright = np.array([int(inspections[i].phash, 16) for i in usable], dtype=np.uint64)
    mirrored = np.array([int(inspections[i].phash_mirrored, 16) for i in usable], dtype=np.uint64)
    found: dict[tuple[int, int], bool] = {}
    for others, flag in ((mirrored, True), (upright, False)):  # found both ways counts as upright
        for a, b in _close(upright, others):
            if a < b:
                found[usable[a], usable[b]] = flag
    return [(i, j, flag) for (i, j), flag in sorted(found.items())]


def _close(hashes: np.ndarray, others: np.ndarray) -> set[tuple[int, int]]:
    """Positions (a, b) with few different bits; only those that agree in a band are compared."""
    close: set[tuple[int, int]] = set()
    for band in range(BANDS):
        shift = np.uint64(band * 64 // BANDS)
        keys = (hashes >> shift).astype(np.uint8)
        other_keys = (others >> shift).astype(np.uint8)
        for key in np.unique(keys):
            left, right = np.flatnonzero(keys == key), np.flatnonzero(other_keys == key)
            for start in range(0, len(left), 1024):
                block = left[start : start + 1024]
                a, b = np.nonzero(_different_bits(hashes[block][:, None] ^ others[right]) < BANDS)
                close.update(zip(block[a].tolist(), right[b].tolist(), strict=True))
    return close


_BITS = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def _different_bits(words: np.ndarray) -> np.ndarray:
    return _BITS[np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 8)].sum(-1, dtype=np.uint8)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures (H, W, 3), brightness and contrast of each channel left out; 1 for the same."""
    a, b = a - a.mean((0, 1)), b - b.mean((0, 1))
    return float((a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-9))


def _thumbnail(photos: ImageDataset, index: int) -> np.ndarray:
    image = load_image(photos.root / photos.paths[index], at_least=2 * COMPARE_SIDE)
    return np.asarray(image.resize((COMPARE_SIDE, COMPARE_SIDE), Image.Resampling.BOX), dtype=np.float32)


def _parallel(features: np.ndarray) -> list[tuple[int, int]]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(norms, 1e-12)).astype(np.float32)
    pairs = []
    for start in range(0, len(unit), 1024):
        a, b = np.nonzero(unit[start : start + 1024] @ unit.T >= MIN_COSINE)
        pairs += [(start + i, j) for i, j in zip(a.tolist(), b.tolist(), strict=True) if start + i < j]
    return pairs
