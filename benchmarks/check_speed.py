"""Photos per second of the data check with one worker process: decoding, hashes, sharpness, colors.

    taskset -c 1 python benchmarks/check_speed.py 17flowers.tgz --side 500

With --side the photos are first saved as JPEGs of that longer side, elsewhere. Prints mean and deviation
over the repeats; each repeat starts a new worker, and the time of that start does not count.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.images import load_image
from flowers_torch.data.quality.scan import Worker
from flowers_torch.data.sources.open import open_dataset


def main() -> None:
    """Prints photos a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--side", type=int, default=0, help="longer side in pixels; 0: the photos as they are")
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    photos = open_dataset(args.data)
    paths = [photos.root / photos.paths[i] for i in sample_by_class(photos, args.photos)]
    with tempfile.TemporaryDirectory() as temporary:
        if args.side:
            for number, path in enumerate(paths):
                image = load_image(path)
                image.thumbnail((args.side, args.side))
                paths[number] = Path(temporary) / f"{number}.jpg"
                image.save(paths[number], quality=90)
        size = statistics.fmean(path.stat().st_size for path in paths)
        print(f"{len(paths)} photos of {photos.name}, {size / 1000:.0f} kB on average", flush=True)
        pairs = [(measure(paths), measure(paths[:1])) for _ in range(args.repeats)]
    for unit, index in (("second", 0), ("second of processor time", 1)):
        rates = [(len(paths) - 1) / (whole[index] - start[index]) for whole, start in pairs]
        spread = statistics.stdev(rates)
        print(f"{statistics.fmean(rates):.0f} +- {spread:.0f} photos a {unit} over {len(rates)} repeats")


def measure(paths: list[Path]) -> tuple[float, float]:
    """Elapsed seconds, and processor time of this process and its worker, to check photos."""
    started = time.perf_counter(), processor_seconds()
    worker = Worker()
    for path in paths:
        worker.inspect(path, 60)
    worker.stop()
    return time.perf_counter() - started[0], processor_seconds() - started[1]


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
