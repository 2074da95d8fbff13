"""Precision and recall of the search for duplicates, and its time and memory over frames of a video.

    python benchmarks/duplicates.py look-alikes
    python benchmarks/duplicates.py copies 17flowers.tgz --photos 1360
    python benchmarks/duplicates.py frames --photos 20000 --kind moving

`look-alikes` draws sets of 60 different pictures in two classes; the right number of pairs and of excluded photos is 0.
`copies` adds one altered copy of each photo to a data set, in turn for each alteration, and counts the copies that join
the group of their photo. A pair that is neither a copy nor in the set without copies is false. `frames` writes the
frames of a video of a moving ball, or of a still scene, and measures the check.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from look_alikes import LOOK_ALIKES
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import load_image
from flowers_torch.data.quality.duplicates import near_duplicates
from flowers_torch.data.quality.inspection import inspect_image
from flowers_torch.data.quality.report import check_quality
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.open import open_dataset

Alteration = Callable[[Image.Image], Image.Image]


def compressed(quality: int) -> Alteration:
    def alter(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return alter


def resized(scale: float, how: Image.Resampling) -> Alteration:
    return lambda image: image.resize((round(image.width * scale), round(image.height * scale)), how)


def cropped(fraction: float) -> Alteration:
    """Cuts a fraction of the width and height off at each side."""
    return lambda image: ImageOps.crop(image, round(min(image.size) * fraction))


def rotated(degrees: float) -> Alteration:
    return lambda image: image.rotate(degrees, Image.Resampling.BICUBIC, expand=degrees % 90 == 0)


def watermarked(image: Image.Image) -> Image.Image:
    over = Image.new("L", image.size)
    side = image.width // 8
    ImageDraw.Draw(over).text((side, image.height // 2), "© A. Botanist", 140, font_size=side)
    return Image.composite(Image.new("RGB", image.size, "white"), image, over)


# The copy and whether the search promises to find it.
ALTERATIONS: dict[str, tuple[Alteration, bool]] = {
    "recompressed, quality 90": (compressed(90), True),
    "recompressed, quality 50": (compressed(50), True),
    "recompressed, quality 25": (compressed(25), True),
    "resized to 0.75": (resized(0.75, Image.Resampling.BICUBIC), True),
    "resized to 0.5": (resized(0.5, Image.Resampling.LANCZOS), True),
    "resized to 0.25": (resized(0.25, Image.Resampling.BILINEAR), True),
    "resized to 1.5": (resized(1.5, Image.Resampling.BICUBIC), True),
    "resized to 0.7, nearest pixel": (resized(0.7, Image.Resampling.NEAREST), True),
    "resized to 224 x 224, quality 75": (lambda image: compressed(75)(image.resize((224, 224))), True),
    "mirrored": (ImageOps.mirror, True),
    "mirrored, resized to 0.5, quality 50": (
        lambda image: compressed(50)(resized(0.5, Image.Resampling.BICUBIC)(ImageOps.mirror(image))),
        True,
    ),
    "gray": (ImageOps.grayscale, False),
    "brightness 0.7": (lambda image: ImageEnhance.Brightness(image).enhance(0.7), False),
    "contrast 1.3": (lambda image: ImageEnhance.Contrast(image).enhance(1.3), False),
    "watermarked": (watermarked, False),
    "cropped by 1% at each side": (cropped(0.01), False),
    "cropped by 2% at each side": (cropped(0.02), False),
    "cropped by 10% at each side": (cropped(0.1), False),
    "rotated by 1 degree": (rotated(1), False),
    "rotated by 5 degrees": (rotated(5), False),
    "rotated by 90 degrees": (rotated(90), False),
}  # fmt: skip


def measure_look_alikes(folder: Path, count: int) -> None:
    """Prints a row for each set of look-alikes."""
    print("| set | photos | pairs | excluded | reported as look-alikes |\n|---|---|---|---|---|")
    for name, draw in LOOK_ALIKES.items():
        root = folder / name
        for index in range(count):
            path = root / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(index).save(path, quality=92)
        dataset = find_images(root)
        result = check_quality(dataset, [inspect_image(dataset.root / path) for path in dataset.paths])
        found = sum(len(group) for group in near_duplicates(dataset, result.inspections).look_alikes)
        pairs = sum(len(group) - 1 for group in result.duplicates)
        print(f"| {name} | {count} | {pairs} | {len(result.excluded())} | {found} |", flush=True)


def measure_copies(folder: Path, data: str, count: int) -> None:
    """Prints a row for each alteration."""
    from flowers_torch.data.augment.preview import sample_by_class  # imports PyTorch, which the memory of frames counts

    source = open_dataset(data)
    chosen = sample_by_class(source, count)
    originals = ImageDataset(
        "", Path("/"), ("",), tuple(str(source.root / source.paths[i]) for i in chosen), (0,) * len(chosen)
    )
    inspections = [inspect_image(path) for path in originals.paths]
    known = near_duplicates(originals, inspections).groups
    group_of = {i: group[0] for group in known for i in group}
    exact = sum(inspections[i].sha256 == inspections[group[0]].sha256 for group in known for i in group[1:])
    print(f"{len(chosen)} photos of {source.name}; without copies {len(known)} groups, {exact} byte-identical pairs")
    print("| copy | found | recall | false pairs |\n|---|---|---|---|")
    for name, (alter, promised) in ALTERATIONS.items():
        paths = []
        for number, path in enumerate(originals.paths):
            copy = folder / f"{number}.{'jpg' if 'quality' in name else 'bmp'}"
            image = alter(load_image(path))
            image.save(copy, quality="keep") if image.format == "JPEG" else image.save(copy)
            paths.append(str(copy))
        both = ImageDataset("", Path("/"), ("",), (*originals.paths, *paths), (0,) * (2 * len(paths)))
        groups = near_duplicates(both, [*inspections, *(inspect_image(path) for path in paths)]).groups
        place = {i: number for number, group in enumerate(groups) for i in group}
        found = sum(i in place and place[i] == place.get(i + len(paths)) for i in range(len(paths)))
        sources = [{group_of.get(i % len(paths), i % len(paths)) for i in group} for group in groups]
        wrong = sum(len(source) - 1 for source in sources)
        print(f"| {name} | {found} | {found / len(paths):.3f}{'' if promised else ' *'} | {wrong} |", flush=True)
    print("* not promised")


def measure_frames(folder: Path, count: int, kind: str) -> None:
    """Prints seconds and peak memory of the inspections and of the search."""
    if not (folder / "a").exists():
        draw_frames(folder, count, kind)
    dataset = find_images(folder)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        inspections = inspect_images(dataset, 2, Path(cache))
    inspected = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = near_duplicates(dataset, inspections)
    searched = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count} {kind} frames: inspections {inspected - began:.0f} s, search {searched - inspected:.0f} s")
    print(f"peak memory {memory / 1024:.0f} MiB after the inspections, {peak / 1024:.0f} MiB after the search")
    sizes = [len(group) for group in found.groups]
    print(f"{len(sizes)} groups of duplicates, largest {max(sizes, default=0)}", end="; ")
    print(f"{sum(map(len, found.look_alikes))} photos reported as look-alikes")


def draw_frames(folder: Path, count: int, kind: str) -> None:
    """Frames of a video of two moving balls, or of the scene without them, in two halves."""
    rng = np.random.default_rng(0)
    scene = Image.fromarray(rng.integers(40, 216, (7, 9, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    noises = rng.normal(0, 3, (32, 240, 320, 3)).round().astype(np.int8)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for index in range(count):
        image = scene.copy()
        for radius, speed, color in ((14, 0.011, (230, 220, 60)), (10, 0.0257, (60, 90, 220))):
            x, y = 160 + 140 * np.sin(speed * index), 120 + 100 * np.cos(speed * 1.37 * index)
            if kind == "moving":
                ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), color, (40, 40, 40))
        pixels = (np.asarray(image) + np.roll(noises[index % 32], index, 1)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[index * 2 // count] / f"{index:06}.jpg", quality=85)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["look-alikes", "copies", "frames"])
    parser.add_argument(
        "data", nargs="?", help="for copies: anything that `train --data` takes; for frames: a folder to keep"
    )
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--kind", choices=["moving", "still"], default="moving")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.what == "look-alikes":
            measure_look_alikes(folder, args.photos)
        elif args.what == "copies":
            measure_copies(folder, args.data, args.photos)
        else:
            measure_frames(Path(args.data) if args.data else folder, args.photos, args.kind)


if __name__ == "__main__":
    main()
