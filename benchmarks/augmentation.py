"""What augmentation costs on one core of this CPU.

    python benchmarks/augmentation.py 17flowers.tgz --size 224

For each augmentation of batches: milliseconds of processor time per image for resizing in a worker and for
augmenting on the training device, and images per second in all, mean and standard deviation over the repeats.
Processor time hardly depends on other programs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from flowers_torch.data.augment.names import BATCH_AUGMENTATIONS
from flowers_torch.data.augment.per_batch import SampleGenerator, standardize
from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.images import load_image
from flowers_torch.data.loading.batches import batch_augmentation
from flowers_torch.data.loading.resize import resize_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.open import open_dataset

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def milliseconds(work: Callable[[], object], images: int) -> float:
    """Processor time a photo."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started) / images


def main() -> None:
    """Prints a line for each augmentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photos", type=int, default=64, help="a batch")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(args.data)
    paths = [dataset.root / dataset.paths[i] for i in sample_by_class(dataset, args.photos)]
    count = len(paths)
    loaded = [load_image(path) for path in paths]
    aspects = torch.tensor([image.width / image.height for image in loaded])
    decode = statistics.fmean(milliseconds(lambda: list(map(load_image, paths)), count) for _ in range(3))
    print(f"{count} photos of {dataset.name}, input {args.size} px; decoding {decode:.2f} ms a photo")
    print("| augmentation | in a worker, ms | on the device, ms | images/s with decoding |")
    print("|---|---|---|---|")
    for augmentation in BATCH_AUGMENTATIONS:
        shrink = resize_transform(augmentation, Preprocessing(args.size))
        augment = batch_augmentation(augmentation, args.size)

        def by_batch(resized: torch.Tensor, augment=augment) -> torch.Tensor:  # type: ignore[no-untyped-def]
            generator = SampleGenerator(0, 0, torch.arange(count))
            return standardize(augment(resized.float() / 255, generator, aspects), MEAN, STD)

        pairs = []
        resized = torch.stack([shrink(image) for image in loaded])
        by_batch(resized)
        for _ in range(args.repeats):
            worker = milliseconds(lambda t=shrink: torch.stack(list(map(t, loaded))), count)
            pairs.append((worker, milliseconds(lambda f=by_batch, c=resized: f(c), count)))
        speeds = [1000 / (decode + worker + device) for worker, device in pairs]
        worker, device = (statistics.fmean(values) for values in zip(*pairs, strict=True))
        speed = f"{statistics.fmean(speeds):.0f} +- {statistics.stdev(speeds):.0f}"
        print(f"| {augmentation} | {worker:.2f} | {device:.2f} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
