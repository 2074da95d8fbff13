"""What each technique brings: the same run with one of them taken away, time and accuracy.

    python benchmarks/techniques.py 17flowers.tgz --photos 340 --seeds 0,1,2
    python benchmarks/techniques.py 17flowers.tgz --photos 340 --only "no folding;channels first"

Head-only and a short fine-tuning (two epochs) of EfficientNet-Lite0, whole processes, each with an empty
cache, in turn, a seed after the other. What has no option is taken away by replacing a function of the
package in that process (`WITHOUT`); the package knows nothing of it. Rows are appended to --results.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from processes import gib, info, run_training, spread

KINDS = {"head only": ["--head-only"], "fine-tuning": ["--epochs", "1,2"]}
# Name: flags of `train.py`, or what to take away.
SAME = {
    "channels first": ["--set", "channels_last=false"],
    "augmented photo by photo": ["--set", "batch_augment=false"],
    "two workers that decode": ["--workers", "2"],
}
ADAMW = ["--set", "stages.head.optimizer=adamw", "--set", "stages.head.lr=3e-3"]
VARIANTS: dict[str, dict[str, list[str] | str]] = {
    "head only": {
        "as it is": [],
        "again, features known": "again",
        "no folding": "folding",
        "photos not kept as bytes": "kept photos",
        "features not kept": "features",
        "fp32, no probe": ["--precision", "fp32"],
        "one view of each photo": ["--set", "stages.head.views=1"],
        "AdamW for L-BFGS, 8 epochs": [*ADAMW, "--set", "stages.head.epochs=8"],
        "AdamW, 2 epochs, nothing stored": [
            *ADAMW,
            *("--set", "stages.head.epochs=2", "--set", "stages.head.views=0"),
        ],
        **SAME,
    },
    "fine-tuning": {
        "as it is": [],
        "no folding": "folding",
        "photos not kept as bytes": "kept photos",
        "bf16, no probe": ["--precision", "bf16"],
        "AdamW for L-BFGS, nothing stored": [*ADAMW, "--set", "stages.head.views=0"],
        "second stage stored, 2 views": ["--set", "stages.finetune.views=2"],
        "all blocks trained": ["--set", "stages.finetune.train=all"],
        "steps not fused": "fusing",
        "batch norm follows the photos": ["--set", "stages.finetune.batch_norm=trained"],
        **SAME,
    },
}


def without_folding() -> None:
    """The front of a network runs as it is."""
    from flowers_torch.models import split_model as cut

    mock.patch.object(cut, "fold", lambda model, forward, dtype: model).start()


def without_fusing() -> None:
    """Training steps and validation run the network as it is."""
    from flowers_torch.runs import stage
    from flowers_torch.training import runtime

    for module in (runtime, stage):
        mock.patch.object(module, "fuse", lambda model, inputs: model).start()


def without_kept_photos() -> None:
    """Every photo is decoded whenever it is asked for."""
    from flowers_torch.runs import experiment as prepare

    mock.patch.object(prepare, "make_image_cache", lambda *arguments, **options: None).start()


def without_features() -> None:
    """Features of no photo are known from before, nor from another part of the run."""
    import torch

    from flowers_torch.runs import feature_cache as front

    mock.patch.object(front, "_read", lambda path: ([], torch.empty(0))).start()


WITHOUT: dict[str, Callable[[], None]] = {
    "folding": without_folding,
    "fusing": without_fusing,
    "kept photos": without_kept_photos,
    "features": without_features,
}


def main() -> None:
    """Runs all variants in turn and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        data = some_photos(args.data, args.photos, Path(temporary) / "photos") if args.photos else args.data
        for seed in args.seeds.split(","):
            for kind, flags_of_kind in kinds.items():
                every = ["--data", data, "--arch", args.arch, "--weights", args.weights, "--seed", seed]
                every += [*flags_of_kind, *(["--size", str(args.size)] if args.size else [])]
                before = Path()
                for number, (name, how) in enumerate(VARIANTS[kind].items()):
                    if name not in wanted:
                        continue
                    folder = Path(temporary) / f"{kind}-{seed}-{number}"
                    cache = before if how == "again" else folder / "cache"
                    before = cache
                    flags = [*every, "--out", str(folder / "run"), *(how if isinstance(how, list) else [])]
                    taken_away = isinstance(how, str) and how in WITHOUT
                    program = [__file__, "--without", how] if taken_away else []
                    run = run_training(flags, cache, program)
                    if run["status"]:
                        sys.exit(f"{kind}, {name} failed")
                    runs[kind, name].append(run)
                    info(args.results, kind=kind, name=name, seed=seed, photos=args.photos, **run)
                    print(f"  {kind}, {name}, seed {seed}: {run['seconds']:.1f} s", flush=True)
    table(runs)


def some_photos(data: str, count: int, folder: Path) -> str:
    """Copies of a few photos of a set, a folder for each class."""
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
    if sys.argv[1:2] == ["--without"]:
        WITHOUT[sys.argv[2]]()
        from flowers_torch.cli import guarded

        sys.exit(guarded("train", sys.argv[3:]))
    main()
