"""Time and memory of whole runs at 1, 4 and 16 times the photos, only the head trained and everything.

    python benchmarks/growth.py 17flowers.tgz --photos 85

The larger sets are crops of the images of the first one, each at another place and saved again. `groups =
none` keeps the search for duplicates from grouping them. Every run starts with an empty cache.

Memory is that of the run's processes without files that the system can take back at any time, such as an
image cache beyond the budget. The budget is `cache_gib`; the larger sets exceed it. A run is bounded
where its peak is at most that of the smallest set plus the budget and --allowance; otherwise the exit status
is 1. Rows are appended to --results.
"""

import argparse
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from processes import gib, info, run_training, spread

from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.images import load_image
from flowers_torch.data.sources.open import open_dataset


def main() -> None:
    """Runs all sizes in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--photos", type=int, default=85, help="of the smallest set")
    parser.add_argument("--times", default="1,4,16")
    parser.add_argument("--runs", default="head only;everything", help="kinds, with semicolons")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="offline")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16, help="several of them in the smallest set")
    parser.add_argument("--epochs", default="1,1", help="of the run that trains everything")
    parser.add_argument("--views", type=int, default=0, help="cached for its first stage; 0: none")
    parser.add_argument("--cache-gib", type=float, default=0.05)
    parser.add_argument("--allowance", type=float, default=0.1, help="GiB for what grows with every photo")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("growth.jsonl"))
    args = parser.parse_args()
    every = ["--arch", args.arch, "--weights", args.weights, "--size", str(args.size), "--groups", "none"]
    every += ["--set", f"cache_gib={args.cache_gib}", "--batch-size", str(args.batch_size)]
    full = ["--epochs", args.epochs, "--set", f"stages.head.cached_views={args.views}"]
    kinds = {"head only": [*every, "--head-only"], "everything": [*every, *full]}
    runs: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = {times: folder / f"photos{times}" for times in map(int, args.times.split(","))}
        counts = {times: multiply(args, times, place) for times, place in sizes.items()}
        for number in range(args.rounds):
            for kind in args.runs.split(";"):
                for times, photos in sizes.items():
                    name = f"{kind.split()[0]}-{times}-{number}"
                    where = ["--data", str(photos), "--out", str(folder / name)]
                    run = run_training([*where, *kinds[kind]], folder / f"cache-{name}")
                    if run["status"]:
                        sys.exit(f"{kind} with {counts[times]} photos failed")
                    runs[kind, times].append(run)
                    how = {"kind": kind, "photos": counts[times], "cache_gib": args.cache_gib}
                    info(args.results, arch=args.arch, size=args.size, **how, **run)
                    print(f"  {kind}, {counts[times]} photos: {run['seconds']:.0f} s", flush=True)
    sys.exit(0 if table(args, runs, counts) else 1)


def multiply(args: argparse.Namespace, times: int, folder: Path) -> int:
    """Writes so many cut-outs of each photo, in a folder a class; how many there are."""
    known = open_dataset(args.data)
    draw = random.Random(0)
    for index in sample_by_class(known, args.photos):
        image = load_image(known.root / known.paths[index])
        place = folder / known.classes[known.labels[index]]
        place.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            width, height = (round(side * draw.uniform(0.6, 0.9)) for side in image.size)
            left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
            cut = image.crop((left, top, left + width, top + height)).resize(image.size)
            cut.save(place / f"{index:05d}-{number:02d}.jpg", quality=draw.randint(85, 95))
    return len(list(folder.glob("*/*.jpg")))


def table(args: argparse.Namespace, runs: dict[tuple[str, int], list[dict[str, Any]]], counts: dict[int, int]) -> bool:
    """Prints a row for each run; whether all kept within the budget."""
    within = True
    print(f"\n{args.arch} at {args.size} px, budget (`cache_gib`) {args.cache_gib} GiB\n")
    print("| run | photos | whole process, s | ms more a photo | peak, GiB | above the smallest | bounded |")
    print("|---|---|---|---|---|---|---|")
    smallest = min(counts)
    for (kind, times), rows in runs.items():
        first = runs[kind, smallest]
        seconds = [row["seconds"] for row in rows]
        peak = max(row["own_bytes"] for row in rows)
        above = peak - max(row["own_bytes"] for row in first)
        bounded = above <= (args.cache_gib + args.allowance) * 2**30
        within &= bounded
        more = ""
        if times > smallest:
            pairs = zip(seconds, (row["seconds"] for row in first), strict=True)
            more = spread([1000 * (a - b) / (counts[times] - counts[smallest]) for a, b in pairs], 0)
        cells = [kind, str(counts[times]), spread(seconds), more, gib(peak), gib(above)]
        print(f"| {' | '.join([*cells, 'yes' if bounded else 'NO'])} |")
    return within


if __name__ == "__main__":
    main()
