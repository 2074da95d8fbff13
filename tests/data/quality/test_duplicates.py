"""The search for duplicates finds copies, tells look-alikes from them, and needs memory in proportion to the photos."""

import dataclasses
import functools
import itertools
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality import duplicates, report
from flowers_torch.data.quality.duplicates import Duplicates, hash_candidates, near_duplicates, similar_features
from flowers_torch.data.quality.exclude import drop_images
from flowers_torch.data.quality.inspection import Inspection, inspect_image
from flowers_torch.data.quality.report import QualityReport, check_quality
from flowers_torch.data.quality.thumbnails import Thumbnails
from flowers_torch.data.sources.demo import FORMS, draw_picture
from flowers_torch.data.sources.open import open_dataset

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from look_alikes import LOOK_ALIKES, blank_image, with_noise  # type: ignore[import-not-found]

NamedImage = tuple[str, Image.Image]


def saved(root: Path, *images: NamedImage, **options: int) -> ImageDataset:
    """A dataset of images, each with the name `class/file`."""
    for name, image in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **options)
    paths = tuple(name for name, _ in images)
    classes = tuple(sorted({path.split("/")[0] for path in paths}))
    return ImageDataset("set", root, classes, paths, tuple(classes.index(path.split("/")[0]) for path in paths))


def inspected(dataset: ImageDataset) -> list[Inspection]:
    return [inspect_image(dataset.root / path) for path in dataset.paths]


def checked(dataset: ImageDataset) -> QualityReport:
    return check_quality(dataset, inspected(dataset))


def kinds(result: QualityReport) -> dict[str, str]:
    return {finding.kind: finding.what for finding in result.findings if finding.kind not in ("few_images", "gray")}


@functools.cache
def flower(seed: int, side: int = 256) -> Image.Image:
    return draw_picture(list(FORMS)[seed % len(FORMS)], side, np.random.default_rng(seed))


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_are_no_duplicates(tmp_path: Path, name: str) -> None:
    images = [(f"{'ab'[i % 2]}/{i}.jpg", LOOK_ALIKES[name](i)) for i in range(60)]
    result = checked(saved(tmp_path, *images, quality=90))
    assert result.duplicates == [] and result.excluded() == {}


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "quality 90": (lambda image: image, "90"),
    "quality 50": (lambda image: image, "50"),
    "quality 25": (lambda image: image, "25"),
    "three quarters": (lambda image: image.resize((192, 192), Image.Resampling.BILINEAR), "png"),
    "half": (lambda image: image.resize((128, 128), Image.Resampling.LANCZOS), "png"),
    "stretched": (lambda image: image.resize((300, 200), Image.Resampling.BICUBIC), "80"),
    "double": (lambda image: image.resize((512, 512), Image.Resampling.BICUBIC), "90"),
    "nearest": (lambda image: image.resize((180, 180), Image.Resampling.NEAREST), "png"),
    "mirrored": (ImageOps.mirror, "75"),
    "gray": (ImageOps.grayscale, "90"),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(tmp_path: Path, name: str) -> None:
    """At least 95 in 100, and nothing else."""
    alter, how = COPIES[name]
    count, originals = 20, [flower(seed) for seed in range(20)]
    saved(tmp_path, *((f"a/{i}.png", image) for i, image in enumerate(originals)))
    altered = [alter(image) for image in originals]
    if how == "png":
        saved(tmp_path, *((f"a/copy{i}.png", image) for i, image in enumerate(altered)))
    else:
        saved(tmp_path, *((f"a/copy{i}.jpg", image) for i, image in enumerate(altered)), quality=int(how))
    suffix = "png" if how == "png" else "jpg"
    paths = (*(f"a/{i}.png" for i in range(count)), *(f"a/copy{i}.{suffix}" for i in range(count)))
    dataset = ImageDataset("set", tmp_path, ("a",), paths, (0,) * len(paths))
    found = near_duplicates(dataset, inspected(dataset))
    assert {tuple(sorted(group)) for group in found.groups} <= {(i, i + count) for i in range(count)}
    assert len(found.groups) >= 0.95 * count
    assert len(found.mirrored) == (len(found.groups) if name == "mirrored" else 0)


def test_different_colors_are_different_pictures(tmp_path: Path) -> None:
    """A gray copy joins one of the colored pictures, and does not join the two."""
    image = flower(5)
    luma, blue, red = image.convert("YCbCr").split()
    other = Image.merge("YCbCr", (luma, red, blue)).convert("RGB")
    dataset = saved(tmp_path, ("a/1.png", image), ("b/2.png", other), ("b/gray.png", image.convert("L")))
    ((first, gray),) = near_duplicates(dataset, inspected(dataset)).groups
    assert first in (0, 1) and gray == 2


def test_every_photo_of_a_group_was_compared_with_the_first(tmp_path: Path) -> None:
    """A disk moves by less than can be seen from one photo to the next, and far from the first to the last."""
    images = []
    for step in range(24):
        image, draw = blank_image((120, 150, 90))
        draw.rectangle((20, 200, 300, 300), (60, 50, 40))
        draw.ellipse((60 + 0.5 * step, 60, 140 + 0.5 * step, 140), (230, 210, 60))
        images.append((f"a/{step:02}.png", image))
    dataset = saved(tmp_path, *images)
    inspections = inspected(dataset)
    groups = near_duplicates(dataset, inspections).groups
    assert len(groups) > 1 and sum(map(len, groups)) > 12
    thumbnails = Thumbnails(dataset, list(range(24)), [320] * 24)
    thumbnails.prepare(range(24))
    assert all(thumbnails.same(first, other, False) for first, *others in groups for other in others)
    assert not thumbnails.same(0, 23, False)


def test_the_largest_photo_comes_first(tmp_path: Path) -> None:
    image = flower(1)
    sizes = ((90, 90), (256, 256), (200, 200))
    dataset = saved(tmp_path, *((f"a/{i}.png", image.resize(size)) for i, size in enumerate(sizes)))
    assert near_duplicates(dataset, inspected(dataset)).groups == [[1, 0, 2]]


def test_one_of_each_picture_is_kept(tmp_path: Path) -> None:
    """Copies in two classes: the exclude list holds all but the largest, and byte-identical copies in one class."""
    image = flower(2)
    dataset = saved(
        tmp_path,
        *((f"{label}/{label}{i}.png", flower(10 * i + ord(label), 96)) for label in "ab" for i in range(30)),
        ("a/large.png", image),
        ("a/large_again.png", image),
        ("b/small.png", image.resize((128, 128))),
        ("b/small_again.png", image.resize((128, 128))),
        ("a/half.png", image.resize((130, 130))),
    )
    result = checked(dataset)
    excluded = {dataset.paths[i]: reason for i, reason in result.excluded().items()}
    assert excluded == dict.fromkeys(
        ("a/large_again.png", "b/small.png", "b/small_again.png"), "duplicates_across_classes"
    )
    rest = [i for i in range(len(dataset)) if i not in result.excluded()]
    again = drop_images(dataset, excluded)
    assert check_quality(again, [result.inspections[i] for i in rest]).excluded() == {}


def test_what_an_excluded_photo_is_a_copy_of_is_kept() -> None:
    """For any groups, classes, copies and mirror images."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(2, 40))
        labels, digests = rng.integers(0, 3, count).tolist(), [str(x) for x in rng.integers(0, count, count)]
        cuts = sorted(rng.integers(0, count, 3).tolist())
        order = rng.permutation(count).tolist()
        groups = [order[a:b] for a, b in itertools.pairwise((0, *cuts, count)) if b - a > 1]
        mirrored = frozenset(i for _, *others in groups for i in others if rng.random() < 0.3)
        across, repeated = report._redundant(groups, mirrored, labels, digests)
        for group in groups:
            kept = [i for i in group if i not in across | repeated]
            assert group[0] in kept
            for i in set(group) - set(kept):
                same_bytes = any(digests[i] == digests[k] for k in kept)
                assert same_bytes or (i not in mirrored and i in across and labels[i] != labels[group[0]])
            assert all(
                any(digests[i] == digests[k] and labels[i] == labels[k] for k in kept) for i in repeated & {*group}
            )


def test_mirror_images_in_two_classes_are_kept(tmp_path: Path) -> None:
    """Left and right arrows, each the mirror image of another."""
    images: list[NamedImage] = []
    for i in range(12):
        rng, (image, draw) = np.random.default_rng(i), blank_image((90, 120, 160))
        for x, y, r in rng.uniform((0, 0, 10), (320, 320, 60), (12, 3)):
            draw.ellipse((x - r, y - r, x + r, y + r), tuple(rng.integers(0, 256, 3).tolist()))
        draw.polygon([(60, 160), (180, 80), (180, 130), (280, 130), (280, 190), (180, 190), (180, 240)], (250, 240, 40))
        images += [(f"one/{i}.jpg", image), (f"two/{i}.jpg", ImageOps.mirror(image))]
    result = checked(saved(tmp_path, *images))
    assert len(result.duplicates) == 12 and result.excluded() == {}
    assert kinds(result)["mirrored_across_classes"].startswith("12 pictures are mirrored")
    assert "duplicates_across_classes" not in kinds(result)


def test_many_photos_of_one_scene_are_look_alikes(tmp_path: Path) -> None:
    """A still scene under sensor noise: the photos stay in one split, and only byte-identical copies are excluded."""
    scene = flower(3)
    images = [(f"{'ab'[i % 2]}/{i}.jpg", with_noise(scene, np.random.default_rng(i))) for i in range(30)]
    dataset = saved(tmp_path, *images, ("a/other.jpg", flower(4)))
    (tmp_path / "a/again.jpg").write_bytes((tmp_path / "a/0.jpg").read_bytes())
    dataset = dataclasses.replace(dataset, paths=(*dataset.paths, "a/again.jpg"), labels=(*dataset.labels, 0))
    result = checked(dataset)
    assert [len(group) for group in result.duplicates] == [31]
    assert result.excluded() == {31: "exact_duplicates"}
    assert kinds(result)["look_alikes"].startswith("31 photos look alike")
    assert "duplicates_across_classes" not in kinds(result)


def test_classes_of_which_many_photos_look_alike_lose_none(tmp_path: Path) -> None:
    images: list[NamedImage] = []
    for i in range(12):
        images += [(f"a/{i}.jpg", flower(i)), (f"b/{i}.jpg", with_noise(flower(i), np.random.default_rng(i)))]
    result = checked(saved(tmp_path, *images))
    assert len(result.duplicates) == 12 and result.excluded() == {}
    assert kinds(result)["look_alikes"].startswith("24 photos look alike")


def test_look_alikes_are_reported(tmp_path: Path) -> None:
    images = [(f"{'ab'[i % 2]}/{i}.jpg", LOOK_ALIKES["coins"](i)) for i in range(30)]
    assert kinds(checked(saved(tmp_path, *images)))["look_alikes"].endswith(
        "photos look alike but differ, such as frames of a video"
    )
    few = saved(tmp_path / "few", *images[:10])
    assert "look_alikes" not in kinds(checked(few))


def test_candidates_are_those_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 1 << 63, 40, dtype=np.uint64) ^ np.uint64(1)
    hashes = np.concatenate([hashes, hashes ^ rng.integers(0, 1 << 20, 40, dtype=np.uint64)])
    images = [
        Inspection(phash=f"{h:016x}", phash_mirrored=f"{m:016x}") for h, m in zip(hashes, hashes[::-1], strict=True)
    ]
    expected = set()
    for a, b in itertools.combinations(range(80), 2):
        own = int(hashes[b])
        if min((own ^ int(hashes[a])).bit_count(), (own ^ int(hashes[79 - a])).bit_count()) <= 12:
            expected.add((b, a))
    assert 10 < len(expected) < 200
    for block in (80 * 7, 1, 1 << 22):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        found = pairs_of(hash_candidates(images))
        assert set(found) == expected and len(found) == len(expected)
    assert list(hash_candidates([])) == []


def pairs_of(candidates) -> list[tuple[int, int]]:
    return [
        (int(rows[r]), int(columns[c])) for rows, columns, close in candidates for r, c in np.argwhere(close).tolist()
    ]


def test_candidates_of_a_large_set_are_the_closest_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that differ in up to 12 bits, upright or mirrored: those of at most 7 bits are found, each once."""
    rng = np.random.default_rng(6)
    first = rng.integers(0, 1 << 64, 300, dtype=np.uint64)
    flips = np.array([sum(1 << int(bit) for bit in rng.permutation(64)[: i % 13]) for i in range(300)], dtype=np.uint64)
    hashes, others = np.concatenate([first, first ^ flips]), np.roll(np.concatenate([first, first]), 1)
    images = [Inspection(phash=f"{h:016x}", phash_mirrored=f"{m:016x}") for h, m in zip(hashes, others, strict=True)]
    expected = set()
    for a, b in itertools.combinations(range(600), 2):
        own = int(hashes[b])
        if min((own ^ int(hashes[a])).bit_count(), (own ^ int(others[a])).bit_count()) <= 7:
            expected.add((b, a))
    assert 300 < len(expected) < 600
    monkeypatch.setattr(duplicates, "MANY", 100)
    for block, rows in ((1 << 20, 256), (500, 3)):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        monkeypatch.setattr(duplicates, "ROWS", rows)
        found = pairs_of(hash_candidates(images))
        assert set(found) == expected and len(found) == len(expected)
        upright = pairs_of(hash_candidates(images, mirrored=False))
        assert len(upright) < len(found) and set(upright) < expected


def test_time_and_memory_are_in_proportion_to_the_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """All hashes are equal, and all photos differ."""
    count, compared = 1500, []
    rng = np.random.default_rng(0)

    def decode(self: Thumbnails, position: int, row: int) -> None:
        self.luma[row] = rng.integers(0, 256, (96, 96))
        coarse = rng.normal(size=(16, 16)).astype(np.float32)
        self.coarse[row] = coarse / np.linalg.norm(coarse)

    monkeypatch.setattr(Thumbnails, "_decode", decode)
    monkeypatch.setattr(Thumbnails, "same", lambda *words: compared.append(words) or False)
    image = Inspection(phash="0f" * 8, phash_mirrored="f0" * 8, contrast=50, width=320, height=240, colorfulness=9)
    inspections = [dataclasses.replace(image, sha256=str(i)) for i in range(count)]
    dataset = ImageDataset("", Path("/"), ("",), tuple(map(str, range(count))), (0,) * count)
    monkeypatch.setattr(duplicates, "BLOCK", 1 << 18)
    tracemalloc.start()
    assert near_duplicates(dataset, inspections).groups == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(compared) <= 8 * count and peak < 60e6


def test_features_do_not_chain() -> None:
    angles = np.radians([0, 15, 30, 45, 200])
    features = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1], [2], [3], [4], [5]])
    assert similar_features(np.concatenate([features, np.zeros((2, 2))])) == [[0, 1], [2, 3]]
    assert similar_features(np.zeros((0, 4))) == []


def test_known_duplicates_are_not_searched_again(tmp_path: Path) -> None:
    dataset = saved(tmp_path, *((f"{'ab'[i % 2]}/{i}.png", flower(i, 96)) for i in range(4)))
    result = check_quality(dataset, inspected(dataset), duplicates=Duplicates([[0, 2]]))
    assert result.duplicates == [[0, 2]]


def test_the_copies_in_signs(shared: Path, tmp_path: Path) -> None:
    """56 photos of the data set are byte-identical copies, many across its splits, and two in train are saved again."""
    with tarfile.open(shared / "data/tutorials/signs_64px.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    dataset = open_dataset(str(tmp_path / "signs_64px"))
    result = checked(dataset)
    assert len(result.excluded()) == 56 + 2 and "duplicates_across_splits" in kinds(result)
    rest = drop_images(dataset, result.exclude_list())
    assert "duplicates_across_splits" not in kinds(checked(rest))
    assert sum(path.startswith("test/") for path in result.exclude_list()) == 1  # a copy of another test photo
