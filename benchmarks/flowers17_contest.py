"""A recipe on stratified splits of Flowers-17, 40/20/20 photos a class, and what each ingredient gives.

    python benchmarks/flowers17_contest.py 17flowers.tgz                        the default recipe, 3 x 3 runs
    python benchmarks/flowers17_contest.py 17flowers.tgz --recipe flowers17_lite0_fast --splits 9 --seeds 1
    python benchmarks/flowers17_contest.py 17flowers.tgz --ablate --splits 1 --seeds 1     one left out each
    python benchmarks/flowers17_contest.py 17flowers.tgz --more                 58 photos a class to train on

Each finished run is a line of --results and is not run again; `--keep` keeps the run folders too; `--views`
asks the photo and its mirror image as well. A linear head fitted to its optimum is the same for every seed:
give it splits.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from flowers_torch.cli import main as flowers_torch
from flowers_torch.config import Config
from flowers_torch.config_file import load_config
from flowers_torch.data.splits.assign import exact_split
from flowers_torch.runs import recipe
from flowers_torch.runs.dataset import open_images

SIZES = (680, 340, 340)  # Oxford's
# Nearly all photos that are not tested; two a class remain to choose the epoch and to calibrate.
MORE = (986, 34, 340)
# What the default recipe has above a plain one, each taken away alone.
INGREDIENTS: dict[str, dict[str, Any]] = {
    "strong crops": {"stages.finetune.augment": "light"},
    "mixup": {"stages.finetune.mixup": 0.0},
    "rates that fall towards the stem": {"stages.finetune.layer_decay": 1.0},
    "average of the weights": {"ema": 0.0},
    "label smoothing": {"label_smoothing": 0.0},
    "stored batch norm": {"stages.finetune.batch_norm": "trained"},
}


def main() -> None:
    """Runs what is missing in the results file, then prints a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="17flowers.tgz, or anything else that is Flowers-17")
    parser.add_argument("--recipe", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="offline", help="as `train --weights`")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablate", action="store_true", help="also leave out each ingredient in turn")
    parser.add_argument("--more", action="store_true", help="train on most of the validation photos too")
    parser.add_argument("--views", action="store_true", help="test with the mirror image too")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("contest.jsonl"))
    parser.add_argument("--keep", type=Path, help="folder for the run folders")
    args = parser.parse_args()

    variants = {"": {}} | (INGREDIENTS if args.ablate else {})
    for name, changes in variants.items():
        for split in range(args.splits):
            for seed in range(args.seeds):
                key = {
                    "recipe": args.recipe,
                    "without": name,
                    "split": split,
                    "seed": seed,
                    "more": args.more,
                }
                if any(row.items() >= key.items() for row in read(args.results)):
                    continue
                settings = {"data": args.data, "seed": seed, "threads": args.threads, "weights": args.weights}
                config = load_config(file=args.recipe, overrides=changes | settings)
                row = key | run(config, split, args.keep, args.views, MORE if args.more else SIZES)
                with args.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
        same = {"recipe": args.recipe, "without": name, "more": args.more}
        rows = [row for row in read(args.results) if row.items() >= same.items()]
        for kind in ("correct", "correct_with_views"):
            found = [row[kind] / row["images"] for row in rows if kind in row]
            if not found:
                continue
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            variant = f"{args.recipe}{' without ' * bool(name)}{name}{', more photos' * args.more}, {kind}"
            print(
                f"{variant}: mean {statistics.fmean(found):.4f}, deviation {spread:.4f}, "
                f"{min(found):.4f} .. {max(found):.4f}, {len(found)} runs"
            )


def run(config: Config, number: int, keep: Path | None, views: bool, sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Trains and tests on one split."""
    filtered = open_images(config)
    splits = exact_split(filtered.dataset, sizes, seed=number, groups=filtered.duplicates)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="contest-", dir=keep))
    result = recipe.train(config, folder, overwrite=True, splits=splits)
    seconds = time.monotonic() - started
    row = {"correct": result.test.correct, "images": result.test.images, "seconds": round(seconds, 1)}
    if views:
        flowers_torch(["evaluate", str(folder), "--tta", "flip", "--out", str(folder / "views")])
        found = json.loads((folder / "views" / "metrics.json").read_text())
        row["correct_with_views"] = found["correct"]
    if not keep:
        shutil.rmtree(folder)
    return row


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of the results file so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


if __name__ == "__main__":
    main()
