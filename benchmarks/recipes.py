"""The recipes of this package beside a plain PyTorch loop, fastai and a plain linear probe on five data sets.

    python benchmarks/recipes.py DATA_SETS/                             everything that the results file lacks
    python benchmarks/recipes.py DATA_SETS/ --variants variants.md      and variants of the recipes, a line each
    python benchmarks/recipes.py DATA_SETS/ --only "head only;fastai" --sets SIGNS
    python benchmarks/recipes.py DATA_SETS/ --table                     the tables, without new runs

A line of --variants is `name: OPTIONS`: KEY=VALUE of `train.py --set`, such as `gentle: stages.finetune.lr=1e-4`, or
flags of train.py. All contestants get the weights of EfficientNet-Lite0, the same capped photos, split, input size and
epochs. A finished run is a line of --results and is not run again; with --minutes, no run begins after so long, so that
repeated calls do everything.

What counts is validation. The same rule chooses the epoch of each contestant: the lowest log loss after a temperature
is fitted, which is also the log loss in the table. FASTAI_PYTHON names the interpreter that has fastai. A variant
finds the features of the frozen backbone cached, the other contestants compute them.
"""

import argparse
import csv
import itertools
import json
import shlex
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from against_peers import peers
from capped_sets import Source, capped
from processes import TRAIN, Command, info, progress_of
from torch import Tensor

from flowers_torch.evaluation.comparison import bootstrap_difference, mcnemar
from flowers_torch.evaluation.metrics import fit_temperature, score
from flowers_torch.evaluation.predictions import load_predictions

ARCH = "tf_efficientnet_lite0"
NOISY = "cifar10n_small_noisy"
SETS = {
    "Flowers-17": Source("17flowers.tgz"),
    "dogs vs cats": Source("dogs_vs_cats_small_200px.tar"),
    "SIGNS": Source("signs_64px.tar", without_copies=True),
    "Corel": Source("corel_5class_256px.tar"),
    "CIFAR-10N": Source(f"{NOISY}.tar", inside=f"{NOISY}/train", truth=f"{NOISY}/truth.csv"),
}
OURS = {
    "head only": ["--arch", ARCH, "--head-only"],
    "two stages": ["--arch", ARCH],
    "default": ["--config", "default", "--arch", ARCH],  # of networks without a recipe file
}
PEERS = ("plain probe", "plain loop", "fastai")
PLAIN = {"head only": ("plain probe",)}  # what a recipe must not lose to; the others to none of the peers


def main() -> None:
    """Runs what is missing in the results file, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the five data sets")
    parser.add_argument("--photos", type=int, default=800, help="of a data set; 5 of 8 are to train on; 0: all")
    parser.add_argument("--size", type=int, default=128, help="input side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with one thread")
    parser.add_argument("--limit", type=int, default=3600, help="seconds after which a run is given up")
    parser.add_argument("--epochs", default="1,4", help="of the head and of fine-tuning")
    parser.add_argument("--variants", type=Path)
    parser.add_argument("--only", default="", help="names of contestants, with semicolons")
    parser.add_argument("--sets", default="", help="names of data sets, with semicolons")
    parser.add_argument("--seeds", default="0", help="of the split and the run, with commas")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "recipes", help="for the copies")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--results", type=Path, default=Path("recipes.jsonl"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.arch, args.batch_size, args.workers, args.weights = ARCH, 32, 0, None  # as `peers` takes them
    variants = read_variants(args.variants) if args.variants else {}
    names = ["head only", "plain probe", "two stages", "default", "plain loop", "fastai", *variants]
    if not args.table:
        run_all(args, names, variants)
    print_tables([row for row in read(args.results) if row.items() >= setting_of(args).items()], names)


def run_all(args: argparse.Namespace, names: list[str], variants: dict[str, str]) -> None:
    """Runs what the results file lacks, one seed after the other."""
    started, known = time.monotonic(), read(args.results)
    keys = []
    for seed, name, data in itertools.product(map(int, args.seeds.split(",")), names, SETS):
        key = {"set": data, "name": name, "seed": seed, "flags": variants.get(name, ""), **setting_of(args)}
        wanted = name in (args.only or name).split(";") and data in (args.sets or data).split(";")
        if wanted and not any(row.items() >= key.items() for row in known):
            keys.append(key)
    with ProcessPoolExecutor(args.jobs, get_context("fork")) as pool:
        copies = {place_of(args, key): key for key in keys}
        made = [pool.submit(copy_of, args, key) for key in copies.values()]
        for copy in made:
            copy.result()
    lock = threading.Lock()

    def one(key: dict[str, Any]) -> None:
        if time.monotonic() - started > 60 * args.minutes:
            return
        found = run(args, key)
        with lock:
            if found:
                info(args.results, **key, **found)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, keys))


def setting_of(args: argparse.Namespace) -> dict[str, Any]:
    """What is the same in all rows that are compared."""
    return {"photos": args.photos, "size": args.size, "epochs": args.epochs, "device": args.device}


def place_of(args: argparse.Namespace, key: dict[str, Any]) -> Path:
    """Folder of the capped copy that a run needs."""
    place: Path = args.work / f"{key['set'].replace(' ', '_')}-{args.photos}-{args.size}-{key['seed']}"
    return place


def copy_of(args: argparse.Namespace, key: dict[str, Any]) -> Path:
    """Makes the capped copy, unless it is there; its `photos.json`."""
    return capped(SETS[key["set"]], place_of(args, key), args.data, args.photos, 2 * args.size, key["seed"])


def read_variants(path: Path) -> dict[str, str]:
    """The flags of each variant, by name."""
    lines = [line for line in path.read_text().splitlines() if ":" in line and not line.startswith("#")]
    found = {name.strip(): shlex.split(text) for name, text in (line.split(":", 1) for line in lines)}
    for name, words in found.items():
        if not words[0].startswith("--"):
            found[name] = [part for word in words for part in ("--set", word)]
    return {name: shlex.join(words) for name, words in found.items()}


def run(args: argparse.Namespace, key: dict[str, Any]) -> dict[str, Any]:
    """One contestant on one data set; empty if it fails."""
    photos = copy_of(args, key)
    content = json.loads(photos.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own = key["name"] in OURS or bool(key["flags"])
        command, more = our_command(args, key, folder) if own else peer_command(args, key, photos, folder)
        command = ["timeout", str(args.limit), *command]
        more |= {"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {}
        rows = [{"seconds": seconds} | row for seconds, row in progress_of((command, more))]
        ended = rows.pop()
        if ended["status"]:
            return {}
        epochs = our_epochs(folder / "run") if own else peer_epochs(rows, content)
        chosen = min(epochs, key=lambda epoch: epoch["loss"])
        if own:
            saved = load_predictions(folder / "run")
            order = {Path(path).name: number for number, path in enumerate(saved.paths["val"])}
            places = [order[Path(path).name] for path, _ in content["val"]]
            logits = saved.logits["val"][torch.tensor(places)]
        else:
            logits = torch.tensor(chosen.pop("logits"))
            epochs = [{name: epoch[name] for name in ("accuracy", "loss")} for epoch in epochs]
    found: dict[str, Any] = measured(logits, [label for _, label in content["val"]])
    if truth := content.get("truth"):
        found["true"] = measured(logits, truth)
    found |= {"train": len(content["train"]), "val": len(content["val"]), "curve": epochs}
    found |= {"seconds": ended["seconds"], "cpu_seconds": ended["cpu_seconds"], "predicted": logits.argmax(1).tolist()}
    found["labels"] = [label for _, label in content["val"]]
    curve = ", ".join(f"{epoch['accuracy']:.3f}" for epoch in epochs)
    curve = f"{ended['seconds']:.0f} s; {curve}"
    print(f"{key['set']} {key['seed']}, {key['name']}: {found['accuracy']:.4f}, {curve}", flush=True)
    return found


def our_command(args: argparse.Namespace, key: dict[str, Any], folder: Path) -> Command:
    """`train.py` with a recipe, or with the flags of a variant."""
    flags = shlex.split(key["flags"]) or OURS[key["name"]]
    if not {"--arch", "--config"} & set(flags):
        flags = [*OURS["two stages"], *flags]
    # The epochs stand first, so that a variant can have other ones.
    flags = flags if "--head-only" in flags else ["--epochs", args.epochs, *flags]
    place = place_of(args, key)
    flags = [*flags, "--data", str(place / "photos"), "--device", args.device, *(["--workers", "0"] * (args.jobs > 1))]
    flags += ["--weights", "offline", "--size", str(args.size)]
    flags += ["--seed", str(key["seed"]), "--out", str(folder / "run")]
    cache = place / "cache" if key["flags"] else folder / "cache"
    return [sys.executable, TRAIN, *flags], {"FLOWERS_TORCH_CACHE": str(cache)}


def peer_command(args: argparse.Namespace, key: dict[str, Any], table: Path, folder: Path) -> Command:
    """A script that reads the photos of the JSON file."""
    flags = ["--photos", str(table), "--seed", str(key["seed"]), "--epochs", args.epochs]
    flags += ["--logits", "--device", args.device]
    found = peers(args, folder, flags)
    if key["name"] == "plain probe":
        command, environment = found["plain loop"]
        return [part.replace("plain_torch.py", "plain_probe.py") for part in command], environment
    if key["name"] not in found:
        raise SystemExit(f"{key['name']} is not here; set FASTAI_PYTHON, or leave it out with --only")
    return found[key["name"]]


def our_epochs(run: Path) -> list[dict[str, Any]]:
    """Validation accuracy and calibrated log loss of each epoch of a finished run."""
    with (run / "history.csv").open(newline="") as history:
        rows = list(csv.DictReader(history))
    return [{"accuracy": float(row["val_accuracy"]), "loss": float(row["val_calibrated_loss"])} for row in rows]


def peer_epochs(rows: list[dict[str, Any]], content: dict[str, Any]) -> list[dict[str, Any]]:
    """The same of what a peer printed, with the logits."""
    labels = [label for _, label in content["val"]]
    epochs = [row["val_logits"] for row in rows if "val_logits" in row]
    return [{"logits": logits} | measured(torch.tensor(logits), labels) for logits in epochs]


def measured(logits: Tensor, labels: list[int]) -> dict[str, float]:
    """Accuracy, and log loss after a temperature is fitted."""
    known = torch.tensor(labels)
    scores = score(logits / fit_temperature(logits, known), known)
    return {"accuracy": scores.accuracy, "loss": scores.loss}


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of the results file so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def print_tables(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Accuracy, log loss and seconds by contestant and data set, and the differences that must not be losses."""
    if not rows:
        return
    sets = [name for name in SETS if any(row["set"] == name for row in rows)]
    runs = {
        (name, known): [r for r in rows if (r["name"], r["set"]) == (name, known)] for name in names for known in sets
    }
    sizes = [next(f"{r['train']} / {r['val']}" for r in rows if r["set"] == known) for known in sets]
    print(f"\n| photos to train on / to validate | {' | '.join(sizes)} |")
    print(f"| contestant | {' | '.join(sets)} | CPU seconds |\n|{'---|' * (2 + len(sets))}")
    for name in names:
        found = [runs[name, known] for known in sets]
        if any(found):
            seconds = [row["cpu_seconds"] for cell in found for row in cell]
            print(f"| {name} | {' | '.join(map(cell_of, found))} | {statistics.median(seconds):.0f} |")
    print("\n| recipe, beside | data set | only it is right | only the other | difference (95%) | p |")
    print("|---|---|---|---|---|---|")
    for name in (name for name in names if name not in PEERS):
        for plain in PLAIN.get(name, PEERS):
            for known in sets:
                print_difference(name, plain, known, runs)


def cell_of(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy and log loss, and that of the true labels where the others are noisy."""
    if not rows:
        return ""
    cells = []
    for scores in (rows, [row["true"] for row in rows if "true" in row]):
        if scores:
            accuracy, loss = (statistics.fmean(row[kind] for row in scores) for kind in ("accuracy", "loss"))
            cells.append(f"{accuracy:.3f} ({loss:.3f})")
    return "; true ".join(cells)


def print_difference(name: str, plain: str, known: str, runs: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """A paired comparison on the validation photos of all seeds that both have."""
    other = {row["seed"]: row for row in runs[plain, known]} if (plain, known) in runs else {}
    pairs = [(row, other[row["seed"]]) for row in runs[name, known] if row["seed"] in other]
    if not pairs:
        return
    right, wrong = (
        torch.cat([torch.tensor(pair[i]["predicted"]) == torch.tensor(pair[i]["labels"]) for pair in pairs])
        for i in range(2)
    )
    first, second = int((right & ~wrong).sum()), int((wrong & ~right).sum())
    low, high = bootstrap_difference(wrong, right)
    difference = f"{(first - second) / len(right):+.3f} ({low:+.3f} .. {high:+.3f})"
    print(f"| {name}, {plain} | {known} | {first} | {second} | {difference} | {mcnemar(first, second):.2g} |")


if __name__ == "__main__":
    main()
