"""Time and memory of whole programs as a set of photos grows: `check`, head only, fine-tuning and `predict`.

    python benchmarks/growth.py 17flowers.tgz 1360 10880 136000 --sets DIR

The photos of all sets are cut-outs of those of DATA, each at another place, saved with `--side` pixels. `check` starts
with an empty cache, and training knows its inspections, but no features. `groups = none` keeps similar cut-outs from
being grouped. Fine-tuning is one epoch of the whole network; `predict` classifies all photos with the model of
the same set, or of a smaller one.

Memory is that of all processes of a program together, without files that the system can take back at any time, such
as an image cache beyond `cache_gib`. Rows are appended to --results, and the table has the last row for each program
and size that is there, also from earlier calls. Milliseconds are those of the processor, which other programs disturb
less. `ms more` is per photo beyond those of the next smaller set: what remains without the seconds that every program
takes. The exit status is 1 if a program took more than --limit-gib.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from processes import TRAIN, gib, info, progress_of

from flowers_torch.data.images import load_image
from flowers_torch.data.sources.open import open_dataset

PROGRAMS = ("check", "head only", "fine-tune", "predict")
FINETUNE = """[[stages]]
name = "finetune"
epochs = 1
train = "all"
lr = 3e-4
augment = "crop"
"""


def main() -> None:
    """Runs all programs on all sizes in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("photos", nargs="+", type=int, help="of each set")
    parser.add_argument("--programs", default=";".join(PROGRAMS), help="with semicolons between them")
    parser.add_argument("--sets", type=Path, help="folder where sets and runs stay [none]")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="offline")
    parser.add_argument("--size", type=int, default=64, help="of the network's input")
    parser.add_argument("--side", type=int, default=96, help="of the photos, in pixels")
    parser.add_argument("--cache-gib", type=float, default=0.5)
    parser.add_argument("--limit-gib", type=float, default=1.5)
    parser.add_argument("--results", type=Path, default=Path("growth.jsonl"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.sets or Path(temporary)
        for count in args.photos:
            photos = folder / f"photos-{count}"
            if not photos.is_dir():
                write_images(args, count, photos)
            for program in args.programs.split(";"):
                row = measure(args, program, count, folder)
                how = {"program": program, "photos": count, "arch": args.arch, "size": args.size}
                info(args.results, **how, cache_gib=args.cache_gib, **row)
                print(f"  {program}, {count} photos: {row['seconds']:.1f} s", flush=True)
    sys.exit(0 if table(args) else 1)


def write_images(args: argparse.Namespace, count: int, folder: Path) -> None:
    """Writes so many cut-outs, in a folder a class, as many of each photo as of the others."""
    known = open_dataset(args.data)
    draw = random.Random(0)
    for number in range(min(count, len(known))):
        index = number * len(known) // min(count, len(known))
        image = load_image(known.root / known.paths[index])
        place = folder / known.classes[known.labels[index]]
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(number, count, len(known)):
            width, height = (round(side * draw.uniform(0.5, 0.9)) for side in image.size)
            left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
            box = (left, top, left + width, top + height)
            cut = image.resize((args.side, args.side), Image.Resampling.BILINEAR, box)
            cut.save(place / f"{copy:06d}.jpg", quality=draw.randint(80, 95))


def measure(args: argparse.Namespace, program: str, count: int, folder: Path) -> dict[str, Any]:
    """Seconds and memory of a program for a set of `folder`."""
    photos, ours = folder / f"photos-{count}", [sys.executable, "-m", "flowers_torch"]
    training = [sys.executable, TRAIN, "--data", str(photos), "--arch", args.arch, "--weights", args.weights]
    training += ["--size", str(args.size), "--groups", "none", "--set", f"cache_gib={args.cache_gib}", "--overwrite"]
    recipe = folder / "finetune.toml"
    recipe.write_text(FINETUNE)
    trained = [folder / f"head-{size}" for size in range(count, 0, -1) if (folder / f"head-{size}").is_dir()]
    commands = {
        "head only": [*training, "--head-only", "--out", str(folder / f"head-{count}")],
        "fine-tune": [*training, "--config", str(recipe), "--out", str(folder / f"finetune-{count}")],
        "predict": [*ours, "predict", *map(str, trained[:1]), str(photos), "--csv"],
        "check": [*ours, "check", str(photos)],
    }
    cache = folder / f"cache-{count}"
    for known in {"check": [cache], "head only": [cache / "features"]}.get(program, []):
        shutil.rmtree(known, ignore_errors=True)
    *_, (seconds, row) = progress_of((commands[program], {"FLOWERS_TORCH_CACHE": str(cache)}))
    if row["status"]:
        sys.exit(f"{program} of {count} photos failed")
    return {"seconds": seconds, **row}


def table(args: argparse.Namespace) -> bool:
    """Prints a row for each program and size; whether all kept within the limit."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in args.results.read_text().splitlines():
        row = json.loads(line)
        if (row["arch"], row["size"]) == (args.arch, args.size):
            rows[row["program"], row["photos"]] = row
    print(f"\n{args.arch} at {args.size} px, photos of {args.side} px, `cache_gib` {args.cache_gib}\n")
    print("| program | photos | whole process, s | of the processor, s | ms a photo | ms more a photo | peak, GiB |")
    print("|---|---|---|---|---|---|---|")
    for program in PROGRAMS:
        before: dict[str, Any] = {}
        for _, row in sorted((count, row) for (name, count), row in rows.items() if name == program):
            cpu, photos, more = row["cpu_seconds"], row["photos"], ""
            if before:
                more = f"{1000 * (cpu - before['cpu_seconds']) / (photos - before['photos']):.2f}"
            times = f"{row['seconds']:.1f} | {cpu:.1f} | {1000 * cpu / photos:.2f} | {more}"
            print(f"| {program} | {photos:,} | {times} | {gib(row['own_bytes'])} |")
            before = row
    return all(row["own_bytes"] <= args.limit_gib * 2**30 for row in rows.values())


if __name__ == "__main__":
    main()
