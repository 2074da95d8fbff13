"""Check, split, training and resuming of a very large set: seconds and memory of everything but decoding.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/large_set.py 10000 100000 1000000
    python benchmarks/large_set.py 10000 --decode

Tar shards are written with the names, sizes and headers of photos. All have the pixels of one small JPEG, and a hole
up to their size, so that a photo takes one block of the disk: 4 GiB for a million. `--shards DIR` keeps the shards
for another time and says where they are written; without it they go to the folder of temporary files.
Inspections are drawn instead of decoded: what decoding costs is in proportion to the photos, in processes of its own,
and is measured with --decode on few of them. Each step runs in a process of its own, which reports its highest memory.
"""

import argparse
import hashlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from processes import POLL_SECONDS, own_bytes

from flowers_torch.config import Config
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.loading.loaders import EpochBatchSampler
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.quality import scan
from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.quality.report import check_quality
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.splits.assign import describe_splits, split_dataset
from flowers_torch.data.splits.split_file import load_split, save_split
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.runs.loaders import Loaders
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import SINGLE_PROCESS

PER_SHARD, CLASSES = 10_000, 200
BLOCK = 4096  # bytes of the disk
FRACTIONS = (0.9, 0.05, 0.05)


def write_shards(folder: Path, count: int, mean_bytes: int) -> None:
    """Shards of photos whose sizes are spread as those of cameras are, by a log-normal distribution.

    Each photo and its header fill the start of a block of the disk, and are written in one call.
    """
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    squares = np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
    Image.fromarray(squares).save(file, "JPEG", quality=50)
    photo = file.getvalue()
    blocks = 1 + np.exp(rng.normal(math.log(mean_bytes) - 0.125, 0.5, count)).astype(int) // BLOCK
    for shard in range(-(-count // PER_SHARD)):
        with open(folder / f"photos-{shard:05}.tar", "wb", buffering=0) as file_of_shard:
            for number in range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD)):
                label, day = number * 7919 % CLASSES, 1 + number % 28
                info = tarfile.TarInfo(f"species_{label:03}/IMG_202607{day:02}_{number:07}.jpg")
                info.size, info.mtime = int(blocks[number]) * BLOCK - tarfile.BLOCKSIZE, 1_780_000_000
                end = file_of_shard.tell() + tarfile.BLOCKSIZE + info.size
                file_of_shard.write(info.tobuf() + photo + b"%016d" % number)  # no two are byte for byte the same
                file_of_shard.seek(end)
            file_of_shard.truncate(end + 2 * tarfile.BLOCKSIZE)


def drawn_inspections(paths: list[Path], *_: Any, **__: Any) -> list[Inspection]:
    """Inspections of photos that are all different, but for one pair of copies in a thousand."""
    found = []
    for path in paths:
        number = int(path.stem[-7:])
        drawn = hashlib.blake2b(b"%d" % (number - (number % 1000 == 999)), digest_size=16).hexdigest()
        values = dict(format="JPEG", mode="RGB", width=4032, height=3024, sha256=f"{number:064x}")
        values |= dict(contrast=40 + number % 20, sharpness=0.5, colorfulness=30.0)
        found.append(Inspection(**values, phash=drawn[:16], phash_mirrored=drawn[16:]))
    return found


# The steps: what each command does with the photos


def check(folder: Path, work: Path) -> str:
    dataset = open_dataset(folder)
    report = check_quality(dataset, scan.inspect_images(dataset))
    return ", ".join(f"{finding.kind} {len(finding.groups)}" for finding in report.findings[:3])


def split(folder: Path, work: Path) -> str:
    filtered = filter_images(open_dataset(folder))
    splits = split_dataset(filtered.dataset, FRACTIONS, 0, filtered.duplicates)
    save_split(splits, filtered.dataset, work / "split.json", 0)
    return describe_splits(filtered.dataset, splits)


def resume(folder: Path, work: Path) -> str:
    splits, changes = load_split(work / "split.json", filter_images(open_dataset(folder)).dataset)
    return f"{len(splits['train'])} in train, changes: {bool(changes)}"


def order(folder: Path, work: Path) -> str:
    """The loaders of a run, and the order of an epoch, without reading a photo."""
    dataset: ImageDataset = open_dataset(folder)
    info = ModelInfo("resnet50", dataset.classes, Preprocessing(224))
    runtime = Runtime(torch.device("cpu"), "fp32", "for a benchmark")
    loaders = Loaders(Config(data=str(folder)), dataset, info, runtime, SINGLE_PROCESS)
    batches = loaders.training(range(len(dataset)), "crop")
    sampler: EpochBatchSampler = batches.order
    return f"{sum(map(len, sampler))} photos in {len(sampler)} batches"


STEPS: dict[str, Callable[[Path, Path], str]] = {
    "check": check,
    "split": split,
    "resume": resume,
    "order": order,
}


def watch(peak: list[int]) -> None:
    """Keeps the highest memory of this process without files, such as those of torch, that the system can take back."""
    while True:
        peak[0] = max(peak[0], own_bytes(os.getpid()))
        time.sleep(POLL_SECONDS)


def run_step(name: str, folder: Path, work: Path, decode: bool) -> None:
    """Runs a step in this process, and prints a line of JSON."""
    if not decode:
        scan._inspect_all = drawn_inspections
    peak = [0]
    threading.Thread(target=watch, args=(peak,), daemon=True).start()
    started, cpu = time.monotonic(), time.process_time()
    text = STEPS[name](folder, work)
    row = {"seconds": time.monotonic() - started, "cpu": time.process_time() - cpu, "own_bytes": peak[0]}
    row["bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(row | {"text": text}), flush=True)


def measure(count: int, mean_bytes: int, decode: bool, kept: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(kept or work) / f"photos-{count}-{mean_bytes}"
        if not folder.is_dir():
            started, writing = time.monotonic(), folder.with_suffix(".new")
            writing.mkdir(parents=True)
            write_shards(writing, count, mean_bytes)
            writing.rename(folder)
            print(f"{count:,} photos written in {time.monotonic() - started:.0f} s", flush=True)
        sizes = [path.stat() for path in folder.iterdir()]
        on_disk, apparent = (
            sum(values) / 2**20 for values in zip(*((s.st_blocks * 512, s.st_size) for s in sizes), strict=True)
        )
        print(f"{len(sizes)} shards of {apparent:,.0f} MiB, {on_disk:,.0f} MiB on the disk", flush=True)
        environment = os.environ | {"FLOWERS_TORCH_CACHE": f"{work}/cache"}
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, str(folder), work, *(["--decode"] * decode)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
            yield {"photos": count, "step": name, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", nargs="*", metavar="PHOTOS")
    parser.add_argument("--mean-bytes", type=int, default=100_000, help="mean size of a photo [100000]")
    parser.add_argument("--shards", default="", metavar="DIR", help="folder where the shards stay [none]")
    parser.add_argument("--decode", action="store_true", help="decode the photos, which are small")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args.step, *map(Path, args.counts), args.decode)
        return
    print("| photos | step | seconds | of the processor | us per photo | own MiB | MiB with torch |")
    for count in map(int, args.counts):
        for row in measure(count, args.mean_bytes, args.decode, args.shards):
            each = 1e6 * row["cpu"] / count
            print(
                f"| {count:,} | {row['step']} | {row['seconds']:.1f} | {row['cpu']:.1f} | {each:.0f} |"
                f" {row['own_bytes'] / 2**20:,.0f} | {row['bytes'] / 2**20:,.0f} |  {row['text']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
