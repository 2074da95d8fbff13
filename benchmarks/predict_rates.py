"""Images per second of prediction: reading alone, computing alone, and both together, and the memory of both.

    python benchmarks/predict_rates.py PHOTOS [--count 10000] [--threads 1]

PHOTOS is a folder of JPEGs; links to them make up the count. Reading and computing alone take 800 photos. `--threads`
computes with so many threads and reads with as many; by default both use all cores.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from flowers_torch.deploy import predictor as predictor_module
from flowers_torch.deploy.inputs import find_files
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.registry import find_entry
from flowers_torch.training.device import choose_runtime

ALONE = 800


def rate(images: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    args = parser.parse_args()
    if args.threads:
        predictor_module.MAX_READERS = args.threads
    runtime = choose_runtime("auto", "fp32", args.threads)
    info = ModelInfo(args.arch, ("a", "b", "c"), find_entry(args.arch).preprocessing)
    predictor = Predictor(runtime.place(build(info)), info, runtime)
    found = find_files([args.photos])
    with tempfile.TemporaryDirectory(dir=found[0].parent) as folder:
        files = [Path(folder, f"{number}.jpg") for number in range(args.count)]
        for number, file in enumerate(files):
            os.link(found[number % len(found)], file)
        alone = files[:ALONE]
        batch = [predictor.read(file) for file in files[:32]]
        predictor.classify(batch)
        reading = rate(ALONE, lambda: [None for _ in predictor.read_batches(alone, 32)])
        computing = rate(ALONE, lambda: [predictor.classify(batch) for _ in range(ALONE // 32)])
        few = rate(ALONE, lambda: [None for _ in predictor.predict(alone)])
        before = peak_kib()
        both = rate(args.count, lambda: [None for _ in predictor.predict(files)])
        grown = peak_kib() - before
    threads = f"{torch.get_num_threads()} threads of torch, {args.threads or os.cpu_count()} readers"
    print(f"{args.arch} on {runtime.device}, {threads}")
    print(f"reading alone {reading:.1f}/s, computing alone {computing:.1f}/s")
    print(
        f"both, {ALONE} photos {few:.1f}/s; {args.count} photos {both:.1f}/s, {both / min(reading, computing):.2f} of"
    )
    print(
        f"the slower alone, {both * (1 / reading + 1 / computing):.2f} of one after the other; +{grown / 2**10:.0f} MiB"
    )


if __name__ == "__main__":
    main()
