"""Training images a second and memory on a GPU: ours, timm's loop, fastai's, and what the machine could do.

    python benchmarks/gpu_training.py --results gpu.jsonl
    python benchmarks/gpu_training.py --device cpu --size 64 --steps 2 --rounds 2 --photos 64 --batch-size 8

InceptionV3 at 299 px and ResNet50 at 224 px, everything trains, from random weights. `noise` is a batch that
stays on the device; `jpegs` are files, made by this script unless --data names a folder of class folders.
The contestants take turns, round by round, each in its own best reasonable way: timm as its train.py with
--amp --channels-last, fastai as its Learner in bfloat16. Both read the loss in each step. One that is not
installed is skipped. The first pass of ours over the JPEGs decodes them and has a line of its own.

The ceilings: a large matrix product in the precision of ours over the operations of a step; and a copy within
the device over the least that a step must move: each layer's output and its gradient, written and read once.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import timm.data
import timm.optim
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowers_torch import __version__
from flowers_torch.config import Config, Stage
from flowers_torch.log import console
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.stage import make_train_state
from flowers_torch.training.device import DTYPES, choose_runtime
from flowers_torch.training.state import EpochMetrics
from flowers_torch.training.step import train_epoch

# Usual and smallest side in pixels; the last one is for trying this script.
NETWORKS = {"inception_v3": (299, 75), "resnet50": (224, 32), "test_resnet": (160, 32)}
CLASSES = 17
Run = Callable[[int], int]  # trains so many steps, returns how many photos that were


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="inception_v3,resnet50")
    parser.add_argument("--size", type=int, default=0, help="side in pixels (each network's usual one)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default="", help="folder of class folders (JPEGs made by this script)")
    parser.add_argument("--photos", type=int, default=4096, help="how many to make")
    parser.add_argument("--only", default="noise,jpegs")
    parser.add_argument("--contestants", default="ours,timm,fastai")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="an option of ours, in JSON")
    parser.add_argument("--results", type=Path, default=Path("gpu_training.jsonl"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, console():
        images = Path(args.data) if args.data else make_images(Path(folder) / "photos", args.photos)
        for arch in args.arch.split(","):
            usual, least = NETWORKS[arch]
            compare(args, arch, max(args.size, least) if args.size else usual, images)


def compare(args: argparse.Namespace, arch: str, size: int, images: Path) -> None:
    """Measures one network and writes a line for each contestant, beside the ceilings."""
    ours = Ours(args, arch, size, images)
    precision = ours.runtime.precision
    limits = ceilings(ours.training.model, size, torch.device(args.device), precision)
    print(f"\n{arch} at {size} px, batches of {args.batch_size}, {precision}, images/s")
    for name, value in limits.items():
        print(f"  {name:36}{value:12,.1f}")
    for data in args.only.split(","):
        run = ours.on_noise
        if data == "jpegs":
            run = ours.on_images()
            info(args, limits, arch, size, "jpegs", "ours, first pass", [rate(args, run, ours.steps)])
        others = {"timm": timm_loop, "fastai": fastai_loop}
        makers: dict[str, Callable[[], Run]] = {"ours": lambda run=run: run}
        for name, make in others.items():
            makers[name] = functools.partial(make, args, arch, size, images if data == "jpegs" else None)
        runs, memory = start(args, makers)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                rates[name].append(rate(args, run, args.steps))
        for name, found in rates.items():
            info(args, limits, arch, size, data, name, found, reason=ours.runtime.reason, memory_gib=memory[name])


def start(args: argparse.Namespace, makers: dict[str, Callable[[], Run]]) -> tuple[dict[str, Run], dict[str, float]]:
    """The contestants that there are, after some steps, and the GiB of the GPU that each took at most."""
    runs: dict[str, Run] = {}
    memory: dict[str, float] = {}
    on_gpu = torch.device(args.device).type == "cuda"
    for name, make in makers.items():
        if name not in args.contestants.split(","):
            continue
        before = torch.cuda.memory_allocated() if on_gpu and name != "ours" else 0  # ours is there already
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            runs[name] = make()
        except ImportError as error:
            print(f"  {name} skipped: {error}")
            continue
        rate(args, runs[name], min(5, args.steps))  # kernels are chosen, workers started
        memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**30 if on_gpu else 0.0
    return runs, memory


class Ours:
    """The package as `train` uses it: its precision, its batches, its step."""

    def __init__(self, args: argparse.Namespace, arch: str, size: int, images: Path) -> None:
        stage = Stage("all", epochs=10_000, lr=1e-5, weight_decay=0.05, augment="crop")
        options = {key: json.loads(value) for key, _, value in (text.partition("=") for text in args.set)}
        config = Config(
            arch,
            str(images),
            "none",
            groups="none",
            size=size,
            batch_size=args.batch_size,
            device=args.device,
        )
        config.split, config.stages, config.cache_gib = "90/5/5", [stage], 16.0
        for key, value in options.items():
            setattr(config, key, value)
        experiment, model = Experiment.new(config)
        self.runtime = runtime = experiment.runtime
        self.training = make_train_state(experiment, model, stage, 0)
        self.batches = experiment.loaders.training(experiment.splits["train"], stage.augment)
        # with --set 'accelerate="auto+compile"'
        self.training.compiled = experiment.acceleration.compiled(model, args.batch_size)
        if self.training.compiled is None:
            self.training.network = experiment.acceleration.training_network(model, runtime, size)
        self.steps = len(self.batches)
        device = runtime.device
        images = runtime.images(torch.randn(args.batch_size, 3, size, size, device=device))
        labels = torch.arange(args.batch_size, device=device) % CLASSES
        self.noise = (images, labels, labels)

    def on_noise(self, steps: int) -> int:
        """Trains on a batch that stays on the device."""
        metrics = EpochMetrics()
        for _ in train_epoch(self.training, [self.noise] * steps, metrics, 0, lambda step: 1e-5):
            pass
        return metrics.images

    def on_images(self) -> Run:
        """A function over endless batches. The images of the first pass are decoded."""
        counted = EpochMetrics()

        def endless() -> Iterator[tuple[Tensor, ...]]:
            for self.batches.order.epoch in itertools.count():
                yield from self.batches

        batches = endless()

        def run(steps: int) -> int:
            before, some = counted.images, itertools.islice(batches, steps)
            for _ in train_epoch(self.training, some, counted, 0, lambda step: 1e-5):
                pass
            return counted.images - before

        return run


def timm_loop(args: argparse.Namespace, arch: str, size: int, folder: Path | None) -> Run:
    """As timm's train.py trains with --amp --amp-dtype bfloat16 --channels-last --opt adamw."""
    device = torch.device(args.device)
    options = {"aux_logits": False} if arch == "inception_v3" else {}
    model = timm.create_model(arch, num_classes=CLASSES, **options).to(device, memory_format=torch.channels_last)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-5, weight_decay=0.05)
    amp = device.type == "cuda" or choose_runtime(args.device).precision == "bf16"
    batches: Iterator[Any] = noise(args, size, device)
    if folder:
        config = timm.data.resolve_data_config({}, model=model)
        loader = timm.data.create_loader(
            timm.data.create_dataset("", root=str(folder)),
            (3, size, size),
            args.batch_size,
            is_training=True,
            interpolation="random",
            mean=config["mean"],
            std=config["std"],
            num_workers=args.workers,
            pin_memory=device.type == "cuda",
            device=device,
            use_prefetcher=device.type == "cuda",
            persistent_workers=args.workers > 0,
        )
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
    criterion = nn.CrossEntropyLoss().to(device)
    model.train()

    def run(steps: int) -> int:
        seen, total = 0, 0.0
        for images, labels in itertools.islice(batches, steps):
            images, labels = images.to(device), labels.to(device)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
            seen += len(images)
        return seen

    return run


def fastai_loop(args: argparse.Namespace, arch: str, size: int, folder: Path | None) -> Run:
    """As fastai's Learner fits with `to_bf16()` and channels_last; its loader starts again in each round."""
    from fastai.callback.channelslast import ChannelsLast
    from fastai.vision.all import (
        Callback,
        CancelFitException,
        CrossEntropyLossFlat,
        DataLoaders,
        ImageDataLoaders,
        Learner,
        Resize,
        aug_transforms,
    )

    device = torch.device(args.device)
    options = {"aux_logits": False} if arch == "inception_v3" else {}
    model = timm.create_model(arch, num_classes=CLASSES, **options).to(device)
    if folder:
        views = {"item_tfms": Resize(size * 8 // 7), "batch_tfms": aug_transforms(size=size, min_scale=0.75)}
        more = {"bs": args.batch_size, "num_workers": args.workers, "device": device}
        loaders = ImageDataLoaders.from_folder(folder, valid_pct=0.05, **views, **more)
    else:
        batches = [next(noise(args, size, device))] * max(args.steps, 5)
        loaders = DataLoaders(batches, batches[:1], device=device)
    learner = Learner(loaders, model, loss_func=CrossEntropyLossFlat(), lr=1e-5, cbs=ChannelsLast())
    learner = learner.to_bf16() if device.type == "cuda" else learner

    class Ending(Callback):  # type: ignore[misc]
        """Counts images and ends after some steps."""

        seen = steps = done = 0

        def after_batch(self) -> None:
            self.seen, self.done = self.seen + len(self.learn.xb[0]), self.done + 1
            if self.done >= self.steps:
                raise CancelFitException

    def run(steps: int) -> int:
        ending = Ending()
        ending.steps = steps
        with learner.no_bar(), learner.no_logging():
            while ending.done < steps:
                learner.fit(1, cbs=[ending])
        return ending.seen

    return run


def noise(args: argparse.Namespace, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batch again and again."""
    images = torch.randn(args.batch_size, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    return itertools.repeat((images, torch.arange(args.batch_size, device=device) % CLASSES))


def rate(args: argparse.Namespace, run: Run, steps: int) -> float:
    """Photos a second, the device's last work included."""
    torch.backends.cudnn.benchmark = True  # as both of the others have it; ours sets it in each step
    wait(args.device)
    started = time.perf_counter()
    seen = run(steps)
    wait(args.device)
    return seen / (time.perf_counter() - started)


def wait(device: torch.device | str) -> None:
    """Until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(model: nn.Module, size: int, device: torch.device, precision: str) -> dict[str, float]:
    """What this device could do at most, in images a second, and the measurements behind it."""
    large, dtype = device.type == "cuda", DTYPES[precision]
    side, elements = (8192, 2**29) if large else (1024, 2**24)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    operations = 2 * side**3 / best(lambda: a @ b, device)
    source = torch.empty(elements, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    bytes_moved = 2 * elements / best(lambda: target.copy_(source), device)
    limits = {"matrix product, TFLOP/s": operations / 1e12, "copy, GB/s read and written": bytes_moved / 1e9}
    if large:
        pinned = torch.empty(elements, dtype=torch.uint8, pin_memory=True)
        seconds = best(lambda: target.copy_(pinned, non_blocking=True), device)
        limits["copy from pinned memory, GB/s"] = elements / 1e9 / seconds
    outputs: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output.numel() * dtype.itemsize)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    images = torch.randn(2, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        model(images).logsumexp(1).sum().backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    limits["ceiling by arithmetic, images/s"] = 2 * operations / counter.get_total_flops()
    limits["ceiling by bandwidth, images/s"] = 2 * bytes_moved / (4 * sum(outputs))
    return limits


def best(function: Callable[[], Any], device: torch.device, tries: int = 8) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(tries):
        wait(device)
        started = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def make_images(folder: Path, count: int) -> Path:
    """JPEGs of 500 x 375 in class folders, each a soft picture with some grain."""
    for number in range(count):
        place = folder / f"class{number % CLASSES:02}"
        place.mkdir(parents=True, exist_ok=True)
        soft = Image.effect_noise((10, 8), 120).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
        grain = Image.effect_noise((500, 375), 30).convert("RGB")
        Image.blend(soft, grain, 0.3).save(place / f"{number}.jpg", quality=90)
    return folder


def info(
    args: argparse.Namespace,
    limits: dict[str, float],
    arch: str,
    size: int,
    data: str,
    name: str,
    rates: list[float],
    **more: Any,
) -> None:
    """A line on the screen, and one of the results."""
    middle, low, high = statistics.median(rates), min(rates), max(rates)
    memory = f", {more['memory_gib']:.1f} GiB" if "memory_gib" in more else ""
    print(f"  {data:8}{name:28}{middle:12,.1f}  ({low:,.1f} .. {high:,.1f}, {len(rates)} rounds{memory})")
    on_gpu = torch.device(args.device).type == "cuda"
    machine = torch.cuda.get_device_name(args.device) if on_gpu else platform.processor()
    versions = {"flowers_torch": __version__, "torch": torch.__version__, "timm": timm.__version__}
    versions |= {"torchvision": torchvision.__version__, "cudnn": str(torch.backends.cudnn.version())}
    what = {"arch": arch, "size": size, "batch_size": args.batch_size, "data": data, "contestant": name}
    found = {"images_per_second": middle, "rates": rates, "steps": args.steps, "options": args.set}
    line = {"machine": machine, "cores": args.workers, **versions, **what, **found, **more, "limits": limits}
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
