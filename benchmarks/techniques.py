"""What each technique brings: the same run with one of them switched off, time and accuracy.

    python benchmarks/techniques.py 17flowers.tgz --photos 340 --seeds 0,1,2
    python benchmarks/techniques.py 17flowers.tgz --photos 340 --only "no fusion;fp32"

Head-only training and a short fine-tuning (two epochs) of EfficientNet-Lite0. Each run is a whole process
with an empty cache. The variants take turns, one seed after the other. Rows are appended to --results.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from processes import gib, info, run_training, spread

from flowers_torch.accelerate import AUTO

KINDS = {"head only": ["--head-only"], "fine-tuning": ["--epochs", "1,2"]}
AGAIN = "again, features known"  # with the cache of the run before


def without(trick: str) -> list[str]:
    """Flags for all tricks of `accelerate = "auto"` but one."""
    return ["--set", f"accelerate={','.join(sorted(AUTO.tricks - {trick}))}"]


# Name: flags of `train.py`.
BOTH = {
    "as it is": [],
    "no acceleration": ["--set", "accelerate=off"],
    "no fusion": without("fusion"),
    "no threads": without("threads"),
    "memory given back": without("allocator"),
    "fp32": without("precision"),
}
VARIANTS: dict[str, dict[str, list[str]]] = {
    "head only": {
        "as it is": [],
        AGAIN: [],
        **BOTH,
        "the mirror image too": ["--set", "stages.head.cached_views=2", "--set", "stages.head.augment=mirror"],
    },
    "fine-tuning": {
        **BOTH,
        "no fused step": without("fused_step"),
        "no fast depthwise gradients": without("depthwise"),
    },
}


def main() -> None:
    """Runs all variants in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--photos", type=int, default=0, help="take so many of them; 0: all")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="offline")
    parser.add_argument("--size", type=int, default=0, help="input side; 0: the network's own")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--runs", default=";".join(VARIANTS), help="kinds, with semicolons")
    parser.add_argument("--only", default="", help="variants beside `as it is`, with semicolons")
    parser.add_argument("--results", type=Path, default=Path("techniques.jsonl"))
    args = parser.parse_args()
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    kinds = {kind: KINDS[kind] for kind in args.runs.split(";")}
    names = {name for kind in kinds for name in VARIANTS[kind]}
    wanted = {"as it is", *args.only.split(";")} if args.only else names
    if unknown := wanted - names:
        parser.error(f"no variant {', '.join(unknown)}; there are {'; '.join(sorted(names))}")
    with tempfile.TemporaryDirectory() as temporary:
        data = copy_images(args.data, args.photos, Path(temporary) / "photos") if args.photos else args.data
        for seed in args.seeds.split(","):
            for kind, flags_of_kind in kinds.items():
                every = ["--data", data, "--arch", args.arch, "--weights", args.weights, "--seed", seed]
                every += [*flags_of_kind, *(["--size", str(args.size)] if args.size else [])]
                before = Path()
                for number, (name, extra) in enumerate(VARIANTS[kind].items()):
                    if name not in wanted:
                        continue
                    folder = Path(temporary) / f"{kind}-{seed}-{number}"
                    cache = before if name == AGAIN else folder / "cache"
                    before = cache
                    run = run_training([*every, "--out", str(folder / "run"), *extra], cache)
                    if run["status"]:
                        sys.exit(f"{kind}, {name} failed")
                    runs[kind, name].append(run)
                    info(args.results, kind=kind, name=name, seed=seed, photos=args.photos, **run)
                    print(f"  {kind}, {name}, seed {seed}: {run['seconds']:.1f} s", flush=True)
    table(runs)


def copy_images(data: str, count: int, folder: Path) -> str:
    """Copies some photos of a data set into a folder for each class."""
    from flowers_torch.data.augment.preview import sample_by_class
    from flowers_torch.data.sources.open import open_dataset

    known = open_dataset(data)
    for index in sample_by_class(known, count):
        path = known.root / known.paths[index]
        place = folder / known.classes[known.labels[index]]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / path.name)
    return str(folder)


def table(runs: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """A row for each variant; changes are against the run as it is, seed by seed."""
    print("\n| run | what differs | seconds | times as long | processor, s | test accuracy | change | GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for (kind, name), rows in runs.items():
        pairs = list(zip(rows, runs[kind, "as it is"], strict=True))
        accuracy = statistics.fmean(row["test_accuracy"] for row in rows)
        change = statistics.fmean(a["test_accuracy"] - b["test_accuracy"] for a, b in pairs)
        cells = [kind, name, spread([row["seconds"] for row in rows])]
        cells += [spread([a["seconds"] / b["seconds"] for a, b in pairs], 2)]
        cells += [spread([row["cpu_seconds"] for row in rows], 0), f"{accuracy:.4f}", f"{change:+.4f}"]
        print(f"| {' | '.join([*cells, gib(max(row['own_bytes'] for row in rows))])} |")


if __name__ == "__main__":
    main()
