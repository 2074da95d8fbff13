"""`flowers-torch preview DATA OUT`: what augmentation makes of the photos, as pictures to look at."""

import argparse
from pathlib import Path

from flowers_torch.errors import UsageError, printable

PER_ROW = 5
EXAMPLES = """examples:
  flowers-torch preview photos/ look/                        20 variants of photos of all classes
  flowers-torch preview rose.jpg look/ --policy tutorial     20 variants of one photo, as Keras's tutorial
  flowers-torch preview flowers17 look/ --policy rand --n 40 --size 299
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", help="anything that `train --data` takes, or one photo")
    parser.add_argument("out", type=Path, help="folder for the pictures and contact_sheet.jpg")
    parser.add_argument("--n", type=int, default=20, help="variants in all (20)")
    parser.add_argument("--policy", default="crop", help="of training (crop), or tutorial")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels (224)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other variants")


def run(args: argparse.Namespace) -> int:
    """Writes the pictures; each row of the sheet is a photo and variants of it."""
    from flowers_torch.data.augment.preview import (
        PREVIEW_AUGMENTATIONS,
        contact_sheet,
        sample_by_class,
        variants,
    )
    from flowers_torch.data.images import is_image_name, load_image
    from flowers_torch.data.loading.loaders import derived_seed
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.files.atomic import atomic_write

    if args.policy not in PREVIEW_AUGMENTATIONS:
        known = ", ".join(PREVIEW_AUGMENTATIONS)
        raise UsageError(f"--policy {printable(args.policy)} is unknown", f"use one of {known}")
    for flag, value, most in (("--n", args.n, 10_000), ("--size", args.size, 4096)):
        if not 1 <= value <= most:
            raise UsageError(f"{flag} {value} is out of range", f"use 1 .. {most}")
    if args.out.is_dir() and any(args.out.iterdir()):
        raise UsageError(f"{printable(args.out)} is not empty", "name a new folder")
    source = Path(args.data).expanduser()
    if source.is_file() and is_image_name(source):
        rows = [(source, args.n)]
    else:
        photos = open_dataset(args.data)
        chosen = sample_by_class(photos, -(-args.n // PER_ROW), args.seed)
        left = [min(PER_ROW, args.n - PER_ROW * row) for row in range(len(chosen))]
        rows = [(photos.root / photos.paths[i], count) for i, count in zip(chosen, left, strict=True)]
    sheet = []
    for number, (path, count) in enumerate(rows):
        photo = load_image(path)
        made = variants(photo, args.policy, args.size, count, derived_seed(args.seed, number))
        for index, picture in enumerate(made):
            with atomic_write(args.out / f"{number:03d}_{index:02d}.jpg") as file:
                picture.save(file, "JPEG", quality=92)
        pictures = [photo, *made]
        sheet += [pictures[i : i + PER_ROW + 1] for i in range(0, len(pictures), PER_ROW + 1)]
    with atomic_write(args.out / "contact_sheet.jpg") as file:
        contact_sheet(sheet).save(file, "JPEG", quality=90)
    print(f"{sum(count for _, count in rows)} pictures; look at {printable(args.out / 'contact_sheet.jpg')}")
    return 0
