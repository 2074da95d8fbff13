"""This package beside a plain PyTorch loop, fastai and Keras, one process each, in turn.

    python benchmarks/against_peers.py steps --arch inception_v3 --size 299 --batch-size 32
    python benchmarks/against_peers.py steps --arch tf_efficientnet_lite0 --forward
    python benchmarks/against_peers.py train 17flowers.tgz --seeds 0,1,2
    python benchmarks/against_peers.py train 17flowers.tgz --arch inception_v3 --weights notop.h5 --tutorial

`steps` times training steps (or forward passes) on one batch of random images in memory. The median of the
rounds is shown with the lowest and the highest. `train` times whole processes from start to test on the same
photos of the same split: seconds until validation first reached 95% and 97%, and how much faster ours reached
the accuracy of each peer. With `--tutorial` it is the Keras tutorial's 2 + 2 epochs at batch 64. Ours begins
with an empty cache, checks its photos and writes its report within its time; the peers do neither. A CPU
without bf16 has no contestants in bf16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from processes import TRAIN, Command, gib, info, progress_of, spread
from torch.utils.flop_counter import FlopCounterMode

from flowers_torch.config_file import load_config
from flowers_torch.models.factory import create_model
from flowers_torch.models.offline import offline_state_dict
from flowers_torch.runs.dataset import choose_splits, open_images
from flowers_torch.training.device import cpu_computes_bf16

HERE = Path(__file__).parent
IN_KERAS = ("inception_v3", "resnet50")


def main() -> None:
    """Runs the contestants in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "train"))
    parser.add_argument("data", nargs="?", help="of train: anything that is Flowers-17")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="Keras .h5 of inception_v3; lite0 has the pip package's")
    parser.add_argument("--size", type=int, default=0, help="input side; 0: the network's own")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", default="1,5", help="of the peers")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tutorial", nargs="?", const="2,2", default="", metavar="EPOCHS")
    parser.add_argument("--xla", action="store_true", help="compile Keras's network")
    parser.add_argument("--workers", type=int, default=0, help="of the peers' data loaders")
    parser.add_argument("--only", default="", help="names of contestants, with semicolons")
    parser.add_argument("--results", type=Path, default=Path("against_peers.jsonl"))
    args = parser.parse_args()
    args.size = args.size or {"inception_v3": 299}.get(args.arch, 224)
    with tempfile.TemporaryDirectory() as temporary:
        (steps if args.what == "steps" else train)(args, Path(temporary))


def peers(args: argparse.Namespace, folder: Path, flags: list[str]) -> dict[str, Command]:
    """The contestants that are not ours, by name."""
    shared = ["--arch", args.arch, "--size", str(args.size), "--batch-size", str(args.batch_size), *flags]
    shared += ["--workers", str(args.workers)]

    def script(python: str, name: str, *more: str, **environment: str) -> Command:
        return [python, str(HERE / "contestants" / name), *shared, *more], environment

    found: dict[str, Command] = {}
    torch_weights, keras_weights = [], []
    if args.arch == "tf_efficientnet_lite0":
        state = {k: v for k, v in offline_state_dict()[0].items() if not k.startswith("classifier.")}
        torch.save(state, folder / "lite0.pth")
        torch_weights = ["--weights", str(folder / "lite0.pth")]
    if args.arch == "inception_v3" and args.weights:
        keras_weights = ["--weights", str(args.weights)]
    bf16 = {", bf16": ["--bf16"]} if cpu_computes_bf16() else {}  # emulated, it takes many times as long
    for half, more in ({"": []} | bf16).items():
        if torch_weights or args.what == "steps":
            found[f"plain loop{half}"] = script(sys.executable, "plain_torch.py", *torch_weights, *more)
            if python := os.environ.get("FASTAI_PYTHON"):
                found[f"fastai{half}"] = script(python, "fastai_learner.py", *torch_weights, *more)
        if (python := os.environ.get("KERAS_PYTHON")) and args.arch in IN_KERAS:
            for backend in ("tensorflow", "torch"):
                if subprocess.run([python, "-c", f"import {backend}"], capture_output=True).returncode == 0:
                    keras = [*keras_weights, *more, *(["--xla"] if args.xla else [])]
                    found[f"Keras, {backend}{half}"] = script(python, "keras_fit.py", *keras, KERAS_BACKEND=backend)
    return found


def steps(args: argparse.Namespace, folder: Path) -> None:
    """Images a second on one batch in memory, against what the processor could do."""
    flags = ["--steps", str(args.steps), *(["--forward"] if args.forward else [])]
    photos = folder / "photos.json"
    some = [[str(noise_image(folder, i)), i % 17] for i in range(64)]
    photos.write_text(json.dumps({"classes": list(range(17)), "train": some, "val": some[:17], "test": []}))
    own = [sys.executable, str(HERE / "contestants" / "ours_steps.py"), "--arch", args.arch]
    own += ["--size", str(args.size), "--batch-size", str(args.batch_size), *flags]
    package = {"PYTHONPATH": str(HERE.parent)}
    contestants = {"ours": (own, package)}
    if args.forward:
        contestants["ours, fused"] = ([*own, "--fused"], package)
    else:
        contestants["ours, stored batch norm"] = ([*own, "--fixed-statistics"], package)
    contestants = chosen(contestants | peers(args, folder, [*flags, "--photos", str(photos)]), args.only)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, command in contestants.items():
            rows[name] += [row for _, row in progress_of(command) if "images_per_second" in row]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        create_model(args.arch, 17).eval()(torch.zeros(1, 3, args.size, args.size))
    work = counter.get_total_flops() * (1 if args.forward else 3)
    kind = "forward" if args.forward else "training"
    print(f"{args.arch} at {args.size}, batch {args.batch_size}, {kind}\n")
    print("| contestant | images/s |\n|---|---|")
    for name, measured in rows.items():
        if measured:
            rates = [row["images_per_second"] for row in measured]
            chosen_ones = sorted({row["precision"] for row in measured if "precision" in row})
            how = f" ({', '.join(chosen_ones)} by autotuning)" if chosen_ones else ""
            print(f"| {name}{how} | {spread(rates)} |")
            size = {"arch": args.arch, "size": args.size, "batch_size": args.batch_size}
            info(args.results, what="steps", kind=kind, **size, name=name + how, images_per_second=rates)
    for dtype in (torch.float32, torch.bfloat16) if cpu_computes_bf16() else (torch.float32,):
        peak = matmul_peak(dtype)
        print(f"| ceiling, {str(dtype)[6:]}: {peak / 1e9:.0f} G/s in a product | {peak / work:.1f} |")


def train(args: argparse.Namespace, folder: Path) -> None:
    """Whole processes on the same photos, a seed after the other."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in map(int, args.seeds.split(",")):
        config = load_config(arch=args.arch, data=args.data, overrides={"seed": seed})
        os.environ["FLOWERS_TORCH_CACHE"] = str(folder / "cache")  # where the peers' photos lie
        filtered = open_images(config)
        known, splits = filtered.dataset, choose_splits(filtered.dataset, config, filtered.duplicates)
        photos: dict[str, Any] = {"classes": list(known.classes)}
        for split, rows in splits.items():
            photos[split] = [[str(known.root / known.paths[i]), known.labels[i]] for i in rows]
        (folder / "photos.json").write_text(json.dumps(photos))
        flags = ["--photos", str(folder / "photos.json"), "--seed", str(seed), "--epochs", args.epochs]
        if args.tutorial:
            args.batch_size = 64
            flags[-1:] = [args.tutorial, "--lr", "0.01,1e-4"]
        contestants = ours(args, folder / f"seed{seed}", seed) | peers(args, folder, flags)
        for name, command in chosen(contestants, args.only).items():
            run: dict[str, Any] = {"name": name, "seed": seed, "epochs": [], "test_accuracy": None}
            for seconds, row in progress_of(command):
                if "val_accuracy" in row:
                    run["epochs"].append((seconds, row["val_accuracy"]))
                run |= {key: value for key, value in row.items() if key != "val_accuracy"}
            run["seconds"] = seconds
            runs[name].append(run)
            info(args.results, what="train", arch=args.arch, batch_size=args.batch_size, **run)
            epochs = ", ".join(f"{accuracy:.3f} at {at:.0f}" for at, accuracy in run["epochs"])
            print(f"  {name}, seed {seed}: {seconds:.0f} s, test {run['test_accuracy']}; {epochs}", flush=True)
    finished = {name: ended for name, rows in runs.items() if (ended := [r for r in rows if r["epochs"]])}
    print_runs(finished)
    print_times_to_accuracy(finished)


def ours(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, Command]:
    """This package's own runs, by name."""
    weights = str(args.weights or "offline")
    flags = ["--data", args.data, "--seed", str(seed), "--weights", weights, "--out"]

    def run(cache: str, *more: str) -> Command:
        out = folder / "-".join(["run", cache, *more]).replace("/", "_")
        environment = {"FLOWERS_TORCH_CACHE": str(folder / cache)}
        return [sys.executable, TRAIN, *flags, str(out), *more], environment

    if args.tutorial:
        split = load_config(arch=args.arch).split  # the peers'
        more = ["--config", "flowers17_tutorial", "--split", split, "--epochs", args.tutorial]
        return {"ours": run("full", *more)}
    found = {"ours": run("full", "--arch", args.arch)}
    if args.arch == "tf_efficientnet_lite0":
        head = ["--arch", args.arch, "--head-only"]
        found["ours, head only"] = run("head", *head)
        found["ours, head only, photos known"] = run("head", *head, "--overwrite")
    return found


def print_runs(runs: dict[str, list[dict[str, Any]]]) -> None:
    """A row for each contestant, over its seeds."""
    print("| contestant | seeds | whole process, s | to 95% of validation | to 97% | test accuracy | GiB |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in runs.items():
        tests = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
        cells = [name, str(len(rows)), spread([row["seconds"] for row in rows], 0)]
        cells += [in_words([reached(row, level) for row in rows]) for level in (0.95, 0.97)]
        cells += [spread(tests, 4) if tests else "", gib(max(row["own_bytes"] for row in rows))]
        print(f"| {' | '.join(cells)} |")


def print_times_to_accuracy(runs: dict[str, list[dict[str, Any]]]) -> None:
    """When ours reached each peer's accuracy of the last and of the best epoch."""
    print("\n| peer | its validation accuracy | after, s | ours | reached after, s | times faster |")
    print("|---|---|---|---|---|---|")
    for peer in (name for name in runs if not name.startswith("ours")):
        for own in (name for name in runs if name.startswith("ours")):
            pairs = [(a, b) for a in runs[peer] for b in runs[own] if a["seed"] == b["seed"]]
            for word, choose in (
                ("last", lambda epochs: epochs[-1][1]),
                ("best", lambda e: max(v for _, v in e)),
            ):
                levels = [choose(theirs["epochs"]) for theirs, _ in pairs]
                their = [reached(row, level) for (row, _), level in zip(pairs, levels, strict=True)]
                mine = [reached(row, level) for (_, row), level in zip(pairs, levels, strict=True)]
                faster = [a / b for a, b in zip(their, mine, strict=True) if a and b]
                cells = [peer, f"{word} {spread(levels, 3)}", in_words(their), own, in_words(mine)]
                print(f"| {' | '.join(cells)} | {spread(faster) if faster else ''} |")


def reached(run: dict[str, Any], level: float) -> float | None:
    """Seconds until validation accuracy first was at a level; ours is printed with four digits."""
    return next((seconds for seconds, accuracy in run["epochs"] if accuracy >= level - 1e-4), None)


def in_words(seconds: list[float | None]) -> str:
    """Median and range, where all arrived."""
    arrived = [value for value in seconds if value is not None]
    text = spread(arrived, 0) if arrived else "never"
    return text if len(arrived) in (0, len(seconds)) else f"{text}, {len(arrived)} of {len(seconds)}"


def chosen(contestants: dict[str, Command], only: str) -> dict[str, Command]:
    """Those that --only names, or all."""
    names = [name.strip() for name in only.split(";")] if only else list(contestants)
    return {name: contestants[name] for name in names}


def noise_image(folder: Path, number: int) -> Path:
    """A small photo of noise."""
    from PIL import Image

    path = folder / f"{number}.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    return path


def matmul_peak(dtype: torch.dtype, side: int = 2048) -> float:
    """Operations a second in a large matrix product, the best of five."""
    a, b = (torch.randn(side, side, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times[1:])


if __name__ == "__main__":
    main()
