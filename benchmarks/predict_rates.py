"""Images per second of prediction: reading alone, computing alone, and both together, and the memory of both.

    python benchmarks/predict_rates.py PHOTOS [--count 10000] [--threads 1] [--arch NETWORK]

PHOTOS is a folder or an archive of JPEGs, such as 17flowers.tgz; links to them make up the count. Reading and
computing alone take 800 photos, before and after the measurement of both, since other programs and the clock of the
processor change the rates; their means count. `--threads` computes with so many threads and reads with as many; by
default both use all cores. With the default network, 10,000 photos take about as many minutes as two slow cores need
to compute them: --count 2000 is enough for a first look.

A rate of both near that of the slower alone says that reading is parallel to computing. On one core both add up, and
the second number counts: 1 is one after the other without any loss.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from flowers_torch.data.sources.open import open_dataset
from flowers_torch.deploy import predictor as predictor_module
from flowers_torch.deploy.inputs import find_files
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.files.system import usable_cores
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


def find_images(source: str) -> list[Path]:
    if Path(source).is_dir():
        return [path.absolute() for path in find_files([source])]
    dataset = open_dataset(source)
    return [dataset.root / path for path in dataset.paths]


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
    images = find_images(args.photos)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.jpg") for number in range(args.count)]
        for number, file in enumerate(files):
            file.symlink_to(images[number % len(images)])
        some = files[:ALONE]
        batch = [predictor.read(file) for file in files[:32]]
        predictor.classify(batch)

        def alone() -> tuple[float, float]:
            reading = rate(len(some), lambda: [None for _ in predictor.read_batches(some, 32)])
            return reading, rate(
                len(some) // 32 * 32, lambda: [predictor.classify(batch) for _ in range(len(some) // 32)]
            )

        before = alone()
        few = rate(len(some), lambda: [None for _ in predictor.predict(some)])
        memory = peak_kib()
        both = rate(len(files), lambda: [None for _ in predictor.predict(files)])
        grown = peak_kib() - memory
        reading, computing = (2 / (1 / first + 1 / second) for first, second in zip(before, alone(), strict=True))
    readers = min(usable_cores(), predictor_module.MAX_READERS)
    print(f"{args.arch} on {runtime.device}, {torch.get_num_threads()} threads of torch, {readers} readers")
    print(f"reading alone {reading:.1f}/s, computing alone {computing:.1f}/s")
    print(f"both: {len(some)} photos {few:.1f}/s, {len(files)} photos {both:.1f}/s and +{grown / 2**10:.0f} MiB")
    print(f"{both / min(reading, computing):.2f} of the slower alone", end=", ")
    print(f"{both * (1 / reading + 1 / computing):.2f} of one after the other")


if __name__ == "__main__":
    main()
