"""From JPEG files to batches on the device: images a second, and how much of the network's own speed is left.

    python benchmarks/data_path.py 17flowers.tgz --arch tf_efficientnet_lite0
    python benchmarks/data_path.py 17flowers.tgz --arch resnet50 --device cuda --workers 8 --photos 1360

The package's first epoch, its later epochs with images cached, and its augmentation per image, beside
torchvision's `ImageFolder` with its transforms in a `DataLoader`, on Pillow images and on tensors. Each is
measured for training (random crops, mirror, colors) and as prediction sees images (center crops, which a
frozen backbone takes), alone and feeding the network. The fraction is of the network's speed on
batches in memory. All in turn, --rounds times; medians with range. Rows are appended to --results.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from contestants.ours_steps import CLASSES, Step, make_step
from processes import info, spread
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from flowers_torch.data.augment.preview import sample_by_class
from flowers_torch.data.loading.batches import CPU_IMAGES, TrainingBatches, batch_augmentation
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import TransformedImages, loader_settings, make_loader
from flowers_torch.data.loading.resize import resized_images, resized_side
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.open import open_dataset

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CROP = 0.875
CACHE_BYTES = 2 << 30
Batches = Iterable[Any]  # (images, labels, ...)


def main() -> None:
    """Prints a table for training and one for prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photos", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="of every path; 0 is ours on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("data_path.jsonl"))
    args = parser.parse_args()
    dataset = open_dataset(args.data)
    chosen = [dataset.root / dataset.paths[i] for i in sample_by_class(dataset, args.photos)]
    with tempfile.TemporaryDirectory() as temporary:
        links = []
        for number, path in enumerate(chosen):  # as torchvision wants them: a folder a class
            link = Path(temporary) / str(number % CLASSES) / f"{number:06d}{path.suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
            links.append(link)
        print(f"{len(links)} photos of {dataset.name}, {args.arch} at {args.size} px, {args.workers} workers")
        for augmentation, forward in (("crop", False), ("none", True)):
            step = make_step(args.arch, args.size, forward, forward, args.device, fixed_statistics=True)
            measure(args, links, augmentation, step)


def measure(args: argparse.Namespace, files: list[Path], augmentation: str, step: Step) -> None:
    """Prints the table of an augmentation."""
    root = files[0].parent.parent
    makers = paths(args, files, augmentation)
    in_memory = [
        (batch[0].to(step.runtime.device), batch[1]) for batch in makers["ours, later epochs"]()
    ]  # which also brings the files into the system's cache
    seconds: dict[str, list[float]] = defaultdict(list)
    on_cpu = step.runtime.device.type == "cpu"
    chunk = CPU_IMAGES if augmentation == "none" and on_cpu else args.batch_size  # as in training
    for _ in range(args.rounds):
        seconds["in_memory"].append(timed(in_memory, step, chunk))
        for name, make in makers.items():
            seconds[name].append(timed(make(), step, chunk, feed=False))
            seconds[f"{name}, fed"].append(timed(make(), step, chunk))
    rates = {name: [len(files) / value for value in values] for name, values in seconds.items()}
    use = "training" if augmentation == "crop" else "a frozen backbone"
    print(f"\n{use}: {step.runtime.precision}, batches in memory {spread(rates['in_memory'])} images/s\n")
    print("| path | images/s | feeding the network | fraction of its own speed |\n|---|---|---|---|")
    for name in makers:
        pairs = zip(rates[f"{name}, fed"], rates["in_memory"], strict=True)
        fraction = spread([100 * fed / own for fed, own in pairs], 0)
        print(f"| {name} | {spread(rates[name])} | {spread(rates[f'{name}, fed'])} | {fraction} % |", flush=True)
    how = {"arch": args.arch, "size": args.size, "photos": len(files), "workers": args.workers}
    how |= {"batch_size": args.batch_size, "device": args.device, "precision": step.runtime.precision}
    info(args.results, augmentation=augmentation, folder=root.name, **how, images_per_second=rates)


def timed(batches: Batches, step: Step, chunk: int, feed: bool = True) -> float:
    """Seconds to go through batches, with or without the network, which sees `chunk` photos at a time."""
    started = time.perf_counter()
    for images, labels, *_ in batches:
        images = step.runtime.images(images)
        if feed:
            for some, classes in zip(images.split(chunk), labels.split(chunk), strict=True):
                step.do(some, classes)
    if step.runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def paths(args: argparse.Namespace, files: list[Path], augmentation: str) -> dict[str, Callable[[], Batches]]:
    """Ways from the files to batches, by name; each call begins an epoch."""
    size, labels = args.size, [int(path.parent.name) for path in files]

    def ours(dataset: TransformedImages) -> Batches:
        reading = loader_settings(args.workers, torch.device(args.device))
        loader, order = make_loader(dataset, args.batch_size, shuffle=True, **reading)
        augment = batch_augmentation(augmentation, size)
        return TrainingBatches(loader, order, 0, CLASSES, args.device, augment, MEAN, STD)

    def empty_cache() -> TransformedImages:
        side, folder = resized_side(augmentation, size), files[0].parent.parent
        made = resized_images(files, labels, 0, augmentation, Preprocessing(size, crop=CROP))
        cache = ImageCache(len(files), CACHE_BYTES, folder, shared=args.workers > 0)
        made.cache = cache.images(side, as_predicted=augmentation == "none")
        return made

    def torchvision(**options: Any) -> Batches:
        folder = ImageFolder(str(files[0].parent.parent), **options)
        return DataLoader(
            folder,
            args.batch_size,
            shuffle=True,
            num_workers=args.workers,
            pin_memory=args.device != "cpu",
        )

    cached = empty_cache()
    for _ in ours(cached):
        pass
    views = torchvision_transform(augmentation, size)
    return {
        "ours, first epoch": lambda: ours(empty_cache()),
        "ours, later epochs": lambda: ours(cached),
        "ImageFolder, Pillow": lambda: torchvision(transform=views),
        "ImageFolder, tensors": lambda: torchvision(transform=views, loader=decoded),
    }


def decoded(path: str) -> Tensor:
    """A photo as torchvision's own decoder gives it."""
    return decode_image(path, mode="RGB")


def torchvision_transform(augmentation: str, size: int) -> v2.Compose:
    """The same in torchvision's layers."""
    bicubic = v2.InterpolationMode.BICUBIC
    views = [v2.Resize(int(size / CROP), bicubic), v2.CenterCrop(size)]
    if augmentation == "crop":
        crop = v2.RandomResizedCrop(size, (0.3, 1.0), interpolation=bicubic)
        views = [crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2)]
    return v2.Compose([*views, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


if __name__ == "__main__":
    main()
