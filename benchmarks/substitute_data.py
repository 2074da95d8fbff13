"""Substitute data for the tutorials' photos that are not available, made from Flowers-17.

    python benchmarks/substitute_data.py 17flowers.tgz substitute_data/

writes these, in the form, size and number of classes that the recipes of `configs/` take:

    train_happy.h5, test_happy.h5  600 / 150 photos of 64x64, yellow flowers and others (happy_house)
    train_signs.h5, test_signs.h5  378 / 96 photos of 64x64, six flowers (signs_resnet50)
    cats_dogs/                     1000 photos to train on, 350 to validate, yellow and others (little_data_*)
    animals/                       five flowers, 63 photos each to train on, 16 to validate (five_animals_*)
    cifar10_form/                  ten flowers at 32x32, 63 photos each to train on, 16 to test (cifar10_cnn)

Duplicate photos go into the same split. A figure on substitute data shows that a recipe works, not that it
reaches the tutorial's figure on the tutorial's data.
"""

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from flowers_torch.data.images import load_image
from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.splits.assign import Splits, exact_split

YELLOW = ("daffodil", "sunflower", "colts_foot", "dandelion", "cowslip", "buttercup")
FIVE = ("tigerlily", "sunflower", "fritillary", "bluebell", "pansy")
SIX = (*FIVE, "snowdrop")
TEN = (*SIX, "iris", "daisy", "windflower", "dandelion")


def main() -> None:
    """Writes all substitute data into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="17flowers.tgz, or another source of Flowers-17")
    parser.add_argument("out", type=Path, help="new folder")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} already exists; name a new folder")
    admission = filter_images(open_dataset(args.data))
    photos = admission.dataset
    kinds = [photos.classes[label] for label in photos.labels]
    pictures = [load_image(photos.root / path) for path in photos.paths]
    yellow = ["other" if kind not in YELLOW else "yellow" for kind in kinds]

    # The second split is not used.
    happy = exact_split(photos, (600, 610, 150), groups=admission.duplicates)
    write_hdf5(args.out, "happy", pictures, yellow, happy)
    halves = exact_split(photos, (1000, 10, 350), groups=admission.duplicates)
    write_folders(args.out / "cats_dogs", pictures, yellow, halves, 150)
    fifths = exact_split(photos, (1071, 17, 272), groups=admission.duplicates)
    for wanted, write in (
        (SIX, lambda own: write_hdf5(args.out, "signs", pictures, kinds, own)),
        (FIVE, lambda own: write_folders(args.out / "animals", pictures, kinds, own, 150)),
        (TEN, lambda own: write_folders(args.out / "cifar10_form", pictures, kinds, own, 32, "test")),
    ):
        write({part: [i for i in indices if kinds[i] in wanted] for part, indices in fifths.items()})


def resized(picture: Image.Image, side: int) -> Image.Image:
    """A photo stretched to a square, as Keras's `target_size` does it."""
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def write_hdf5(out: Path, name: str, pictures: list[Image.Image], kinds: list[str], split: Splits) -> None:
    """Writes a pair of files with the course's keys."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted({kinds[index] for indices in split.values() for index in indices})
    for part in ("train", "test"):
        with h5py.File(out / f"{part}_{name}.h5", "w") as file:
            file[f"{part}_set_x"] = np.stack([np.asarray(resized(pictures[i], 64)) for i in split[part]])
            file[f"{part}_set_y"] = np.array([[names.index(kinds[i]) for i in split[part]]])
            file["list_classes"] = np.array([kind.encode() for kind in names])


def write_folders(
    out: Path,
    pictures: list[Image.Image],
    kinds: list[str],
    split: Splits,
    side: int,
    held: str = "validation",
) -> None:
    """Writes class folders of PNG files below train/ and validation/ (or `held`)."""
    for part, name in (("train", "train"), ("test", held)):
        for index in split[part]:
            path = out / name / kinds[index] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            resized(pictures[index], side).save(path)


if __name__ == "__main__":
    main()
