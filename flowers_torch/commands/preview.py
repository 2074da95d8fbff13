"""Save augmented variants of photos, as training sees them."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_classes
from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.files.system import expand_home, valid_name

PER_ROW = 5
EXAMPLES = """examples:
  flowers-torch preview photos/ look/                        20 variants of photos of all classes
  flowers-torch preview rose.jpg look/ --augment tutorial    20 variants of one photo, as in Keras's tutorial
  flowers-torch preview flowers17 look/ --augment rand --n 40 --size 299
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, archive, table, flowers17, demo, or one photo")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the images and contact_sheet.jpg")
    add_classes(parser)
    parser.add_argument("--n", type=int, default=20, metavar="N", help="number of variants [20]")
    parser.add_argument("--augment", default="crop", metavar="NAME", help="augmentation of a stage, or tutorial [crop]")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="side of the images in pixels [224]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the augmentation [0]")


def run(args: argparse.Namespace) -> None:
    from flowers_torch.data.augment.preview import PREVIEW_AUGMENTATIONS, contact_sheet, sample_by_class, variants
    from flowers_torch.data.images import is_image_name, load_image
    from flowers_torch.data.loading.loaders import derived_seed
    from flowers_torch.data.mirrored_names import mirrored_classes
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.files.atomic import atomic_write

    if args.augment not in PREVIEW_AUGMENTATIONS:
        what = f"--augment {printable(args.augment)} is not a valid augmentation"
        raise UsageError(what, f"use one of {', '.join(PREVIEW_AUGMENTATIONS)}")
    for flag, value, most in (("--n", args.n, 10_000), ("--size", args.size, 4096)):
        if not 1 <= value <= most:
            raise UsageError(f"{flag} {value} is out of range", f"use 1 .. {most}")
    if args.out.is_dir() and any(args.out.iterdir()):
        raise UsageError(f"{printable(args.out)} is not empty", "name a new folder")
    source, mirror = expand_home(args.data), True
    if source.is_file() and is_image_name(source):
        rows = [(source, "", args.n)]
    else:
        dataset = open_dataset(args.data, classes=args.classes)
        mirror = mirrored_classes(dataset.classes) is None
        chosen = sample_by_class(dataset, -(-args.n // PER_ROW), args.seed)
        counts = [min(PER_ROW, args.n - PER_ROW * row) for row in range(len(chosen))]
        names = [f"_{valid_name(dataset.classes[dataset.labels[i]])}" for i in chosen]
        rows = list(zip([dataset.root / dataset.paths[i] for i in chosen], names, counts, strict=True))
    sheet = []
    for number, (path, name, count) in enumerate(rows):
        image = load_image(path)
        augmented = variants(image, args.augment, args.size, count, derived_seed(args.seed, number), mirror)
        for index, variant in enumerate(augmented):
            with atomic_write(args.out / f"{number:03d}_{index:02d}{name}.jpg") as file:
                variant.save(file, "JPEG", quality=92)
        images = [image, *augmented]
        sheet += [images[i : i + PER_ROW + 1] for i in range(0, len(images), PER_ROW + 1)]
    with atomic_write(args.out / "contact_sheet.jpg") as file:
        contact_sheet(sheet).save(file, "JPEG", quality=90)
    print(f"{plural(sum(count for *_, count in rows), 'image')} in {printable(args.out)}, all on contact_sheet.jpg")
