"""Mutated and hostile inputs for every reader, and for the server.

    python -m tests.fuzz                         one seed: 3,000 images, 2,500 other files, 5,000 requests
    python -m tests.fuzz --seed 1 2 3            three seeds
    python -m tests.fuzz --files 500 --images 0 --requests 0 --only "keras"

Prints how many cases ended in which way, and which promises of docs/security.md were broken; exit code 1 if any was.
Needs Linux (fork, /proc) and the extras `test`.
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowers_torch import cli
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.training.device import choose_runtime

from . import files, images, requests
from .sandbox import Box, run

TRAIN = (
    *("--arch", "test_resnet", "--weights", "none", "--size", "32", "--batch-size", "8", "--device", "cpu"),
    *("--precision", "fp32", "--threads", "1", "--workers", "0", "--seed", "1", "--quiet"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--files", type=int, default=2500)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--only", default="", help="cases whose name contains one of these, separated by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    broken = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        box = Box(Path(name).resolve())
        model = prepare(box)
        classifier = Predictor.load(model, choose_runtime("cpu", "fp32"))
        for seed in args.seed:
            draw = random.Random(seed)
            found = images.cases(args.images, draw, box, classifier) if args.images else ()
            broken += attack(f"seed {seed}, images", found, box, args.only)
            found = files.cases(args.files, draw, box, model)
            broken += attack(f"seed {seed}, files", found, box, args.only)
            if args.requests:
                broken += attack_server(f"seed {seed}, requests", args.requests, draw, box, model)
    print(f"{broken} broken promises" if broken else "no promise was broken")
    return 1 if broken else 0


def prepare(box: Box) -> Path:
    """Trains a tiny network once: a finished run, a stopped one, an export, and a filled cache."""
    fixed = box.work / "fixed"
    draw = np.random.default_rng(0)
    for label, color in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (fixed / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(np.array(color) + draw.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(fixed / "photos" / label / f"{number}.png")
    os.environ["FLOWERS_TORCH_CACHE"] = str(fixed / "cache")
    train = ["train", "--data", str(fixed / "photos"), *TRAIN]
    with contextlib.redirect_stdout(sys.stderr):
        finished, stopped = fixed / "finished", fixed / "stopped"
        assert cli.main([*train, "--epochs", "1", "--out", str(finished)]) == 0
        shutil.copytree(finished, stopped)
        for path in stopped.glob("resume*"):
            path.unlink()
        _stop_in_the_middle(train, stopped)
        assert cli.main(["export", str(finished), "--out", str(fixed / "model.onnx")]) == 0
        assert cli.main(["label-issues", str(finished)]) == 0  # fills the cache of features
        words = ["crossval", *train[1:], "--epochs", "1", "--folds", "3", "--out", str(fixed / "folds")]
        assert cli.main(words) == 0
    return finished


def _stop_in_the_middle(train: list[str], folder: Path) -> None:
    """A run that stops in its second epoch because of a signal."""
    import signal

    from flowers_torch.runs import stage

    real, epochs = stage.history_row, []

    def row(*arguments: Any) -> Any:
        epochs.append(1)
        if len(epochs) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    stage.history_row = row
    shutil.rmtree(folder)
    try:
        assert cli.main([*train, "--epochs", "4", "--out", str(folder)]) == 143
    finally:
        stage.history_row = real


def attack(title: str, found: Iterable[tuple[str, Callable[[], Callable[[], Any]]]], box: Box, only: str) -> int:
    """Runs the cases and prints their table; returns the number of broken promises."""
    codes: Counter[int] = Counter()
    faults: Counter[str] = Counter()
    started, slowest, largest = time.monotonic(), 0.0, 0
    for name, build in found:
        if not any(word in name for word in only.split(",")):
            continue
        box.clear()
        result = run(build, box)
        codes[result.code] += 1
        slowest, largest = max(slowest, result.seconds), max(largest, result.peak)
        for fault in result.faults():
            faults[fault] += 1
            text = result.output.decode("utf-8", "backslashreplace").strip()
            kinds = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
            print(f"  {fault}: {name}: exit {result.code}, {result.changed}\n    {kinds[-1500:]}", flush=True)
    seconds = time.monotonic() - started
    ends = ", ".join(f"exit {code}: {count}" for code, count in sorted(codes.items()))
    print(f"{title}: {sum(codes.values())} cases in {seconds:.0f} s ({ends}); {_table(faults)}")
    print(f"{title}: slowest {slowest:.1f} s, most memory {largest >> 20} MB", flush=True)
    return sum(faults.values())


def attack_server(title: str, count: int, draw: random.Random, box: Box, model: Path) -> int:
    """Attacks the server and prints the table; returns the number of broken promises."""
    served = requests.serve_and_attack(count, draw, model, box.root / "home")
    responses = ", ".join(f"{kind}: {number}" for kind, number in served.responses.most_common())
    print(f"{title}: {sum(served.responses.values())} requests ({responses}); {_table(served.faults)}")
    grown = (served.peak - served.before) >> 20
    print(f"{title}: {grown} MB beyond the {served.before >> 20} MB after the start, {served.log_bytes} bytes of log")
    for example in served.examples[:20]:
        print(f"  {example}")
    return sum(served.faults.values())


def _table(faults: Counter[str]) -> str:
    kinds = ("crash", "hang", "memory", "exit 1", "code executed", "file outside", "terminal", "noise")
    rest = [kind for kind in faults if kind not in kinds]
    return ", ".join(f"{kind} {faults[kind]}" for kind in (*kinds, *rest))


if __name__ == "__main__":
    sys.exit(main())
