"""This package beside a plain PyTorch loop, fastai and Keras, one process each, in turn.

    python benchmarks/against_peers.py steps --arch inception_v3 --size 299 --batch-size 32
    python benchmarks/against_peers.py steps --arch tf_efficientnet_lite0 --forward
    python benchmarks/against_peers.py train 17flowers.tgz --seeds 0,1,2
    python benchmarks/against_peers.py train 17flowers.tgz --arch inception_v3 --weights notop.h5 --tutorial

`steps` times training steps (or forward passes) on resident noise; the median of the rounds is shown with
the lowest and the highest. `train` times whole processes from start to test on the same photos of the same
split: seconds until validation first reached 95% and 97% and, for each peer, its own best; with `--tutorial`
the Keras tutorial's 2 + 2 epochs at batch 64. The peers live in Pythons of their own, named by FASTAI_PYTHON
(`pip install fastai timm`) and KERAS_PYTHON (`pip install keras tensorflow-cpu torch`); those not named
are left out. Rows are appended to --results as JSON lines.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from flowers_torch.config import load_config
from flowers_torch.models.multiplications import count_multiplications
from flowers_torch.models.offline_weights import offline_state_dict
from flowers_torch.models.zoo import create_model
from flowers_torch.prepare import admit_photos, choose_split

HERE = Path(__file__).parent
EPOCH = re.compile(r"^\s+\S+ \d+/\d+ .* val loss \S+ acc ([\d.]+)")
TEST = re.compile(r"^test\s+accuracy ([\d.]+)")
Command = tuple[list[str], dict[str, str]]  # with additions to the environment


def main() -> None:
    """Runs the contestants in turn and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("steps", "train"))
    parser.add_argument("data", nargs="?", help="of train: anything that is Flowers-17")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="Keras .h5 of inception_v3; lite0 has the pip package's")
    parser.add_argument("--size", type=int, default=0, help="input side; 0: the network's own")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", default="1,8", help="of the peers")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tutorial", action="store_true")
    parser.add_argument("--only", default="", help="names of contestants, with semicolons")
    parser.add_argument("--results", type=Path, default=Path("against_peers.jsonl"))
    args = parser.parse_args()
    args.size = args.size or {"inception_v3": 299}.get(args.arch, 224)
    with tempfile.TemporaryDirectory() as temporary:
        (steps if args.what == "steps" else train)(args, Path(temporary))


def peers(args: argparse.Namespace, folder: Path, flags: list[str]) -> dict[str, Command]:
    """The contestants that are not ours, by name."""
    shared = ["--arch", args.arch, "--size", str(args.size), "--batch-size", str(args.batch_size), *flags]

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
    if torch_weights or args.what == "steps":
        found["plain loop"] = script(sys.executable, "plain_torch.py", *torch_weights)
        found["plain loop, bf16"] = script(sys.executable, "plain_torch.py", *torch_weights, "--bf16")
        if python := os.environ.get("FASTAI_PYTHON"):
            found["fastai"] = script(python, "fastai_learner.py", *torch_weights)
    if (python := os.environ.get("KERAS_PYTHON")) and args.arch == "inception_v3":
        for backend in ("tensorflow", "torch"):
            if subprocess.run([python, "-c", f"import {backend}"], capture_output=True).returncode == 0:
                for more in ([], ["--bf16"]):
                    name = f"Keras, {backend}" + (", bf16" if more else "")
                    found[name] = script(python, "keras_fit.py", *keras_weights, *more, KERAS_BACKEND=backend)
    return found


def steps(args: argparse.Namespace, folder: Path) -> None:
    """Images a second on resident noise, against what the processor could do."""
    flags = ["--steps", str(args.steps), *(["--forward"] if args.forward else [])]
    photos = folder / "photos.json"
    some = [[str(noise_photo(folder, i)), i % 17] for i in range(64)]
    photos.write_text(json.dumps({"classes": list(range(17)), "train": some, "val": some[:17], "test": []}))
    found = peers(args, folder, [*flags, "--photos", str(photos)])
    ours = [sys.executable, str(HERE / "contestants" / "ours_steps.py"), "--arch", args.arch]
    ours += ["--size", str(args.size), "--batch-size", str(args.batch_size), *flags]
    contestants = chosen({"ours": (ours, {"PYTHONPATH": str(HERE.parent)})} | found, args.only)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, command in contestants.items():
            rates[name] += [
                row["images_per_second"] for _, row in lines(command) if "images_per_second" in row
            ]
    multiplied = sum(
        count_multiplications(create_model(args.arch, 17).eval(), (3, args.size, args.size)).values()
    )
    work = 2 * multiplied * (1 if args.forward else 3)
    print(f"{args.arch} at {args.size}, batch {args.batch_size}, {'forward' if args.forward else 'training'}")
    for name, values in rates.items():
        if values:
            median = statistics.median(values)
            print(f"  {name:24} {median:7.1f} img/s ({min(values):.1f} .. {max(values):.1f})")
            record(args, name=name, images_per_second=median, all=values)
    for kind in (torch.float32, torch.bfloat16):
        peak = matmul_peak(kind)
        print(f"  ceiling, {str(kind)[6:]:15} {peak / work:7.1f} img/s, by {peak / 1e9:.0f} G/s in a product")


def train(args: argparse.Namespace, folder: Path) -> None:
    """Whole processes on the same photos."""
    for seed in map(int, args.seeds.split(",")):
        config = load_config(arch=args.arch, data=args.data, overrides={"seed": seed})
        admission = admit_photos(config)
        known, parts = admission.photos, choose_split(admission.photos, config, admission.twins)
        told: dict[str, Any] = {"classes": list(known.classes)}
        for part, rows in parts.items():
            told[part] = [[str(known.root / known.paths[i]), known.labels[i]] for i in rows]
        (folder / "photos.json").write_text(json.dumps(told))
        flags = ["--photos", str(folder / "photos.json"), "--seed", str(seed), "--epochs", args.epochs]
        ours = [sys.executable, str(HERE.parent / "train.py"), "--data", args.data, "--seed", str(seed)]
        if args.tutorial:
            args.batch_size = 64
            flags[-1:] = ["2,2", "--lr", "0.01,1e-4"]
            ours += ["--config", "flowers17_seed", "--split", config.split]
        else:
            ours += ["--arch", args.arch]
        ours += ["--weights", str(args.weights or "offline"), "--out", str(folder / f"ours{seed}")]
        contestants = {"ours": (ours, {})} | peers(args, folder, flags)
        if args.arch == "tf_efficientnet_lite0":
            head_only = [*ours[:-1], str(folder / f"head{seed}"), "--head-only"]
            contestants["ours, head only"] = (head_only, {})
        for name, command in chosen(contestants, args.only).items():
            epochs: list[tuple[float, float]] = []
            test = most = 0.0
            for seconds, row in lines(command):
                most = max(most, row.get("bytes", 0))
                test = row.get("test_accuracy", test)
                if "val_accuracy" in row:
                    epochs.append((seconds, row["val_accuracy"]))
            reached = {
                f"to_{level}": next((s for s, a in epochs if a >= level / 100), None) for level in (95, 97)
            }
            whole = {"name": name, "seed": seed, "seconds": seconds, "test_accuracy": test, "bytes": most}
            record(args, **whole, **reached, epochs=epochs)
            print(f"  {name:24} seed {seed}: {seconds:6.0f} s, test {test:.4f}, {reached}", flush=True)


def lines(command: Command) -> Iterator[tuple[float, dict[str, Any]]]:
    """What a contestant tells, with the seconds since its start; ours is read off its console."""
    started = time.time()
    environment = os.environ | command[1] | {"BENCHMARK_STARTED": str(started)}
    process = subprocess.Popen(command[0], env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout or ():
        seconds = time.time() - started
        if line.startswith("{"):
            yield seconds, json.loads(line)
        elif match := EPOCH.match(line):
            yield seconds, {"val_accuracy": float(match[1])}
        elif match := TEST.match(line):
            yield seconds, {"test_accuracy": float(match[1])}
    _, status, used = os.wait4(process.pid, 0)
    if status:
        print(f"  {command[0][1]} ended with status {status}", file=sys.stderr)
    yield time.time() - started, {"bytes": used.ru_maxrss * 1024}


def chosen(contestants: dict[str, Command], only: str) -> dict[str, Command]:
    """Those that --only names, or all."""
    names = [name.strip() for name in only.split(";")] if only else list(contestants)
    return {name: contestants[name] for name in names}


def noise_photo(folder: Path, number: int) -> Path:
    """A photo to make a data loader happy that is not used."""
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


def record(args: argparse.Namespace, **values: Any) -> None:
    """A line of the results."""
    what = {"what": args.what, "arch": args.arch, "size": args.size, "forward": args.forward}
    where = {"machine": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(what | where | values) + "\n")


if __name__ == "__main__":
    main()
