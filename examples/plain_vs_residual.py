"""Does depth help? The same networks with and without shortcuts, ever deeper, on the same photos.

    python examples/plain_vs_residual.py        about 8 minutes of one core (Intel Xeon with AMX)
    python examples/plain_vs_residual.py --data my_photos/ --depths 8 20 56 --seeds 0 1 2

Every network is a thin ResNet of 6n + 2 layers or the plain network, which has the same layers and lacks only
the sums. What is compared is the error on the *training* photos: a deeper network that does worse there is
not overfitting, it is harder to optimize (He et al., https://arxiv.org/abs/1512.03385, figures 1 and 6).

Expected on the demo photos (mean of three seeds, lowest to highest):

| layers | plain                   | residual             |
|--------|-------------------------|----------------------|
| 8      |  0.5% (0.2% to 0.9%)    | 0.6% (0.2% to 1.0%)  |
| 20     |  5.2% (1.3% to 12.1%)   | 0.4% (0.0% to 0.7%)  |
| 32     | 29.9% (18.2% to 52.0%)  | 0.7% (0.6% to 1.0%)  |
| 56     | 64.9% (53.8% to 72.4%)  | 1.7% (0.9% to 2.9%)  |
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.files.atomic import write_text
from flowers_torch.models.resnet_cifar import cifar_resnet
from flowers_torch.report.charts import Axis, Series, line_chart, percent_tick, standalone

KINDS = {"plain": "none", "residual": "zero_pad"}
COLORS = {"plain": "c", "residual": "b"}  # of the style sheet of charts

Results = dict[tuple[str, int], Tensor]  # (kind, depth) -> training error (seeds, epochs)


def read_images(source: str, size: int) -> tuple[Tensor, Tensor]:
    """All photos of a set as one tensor (N, 3, size, size), and their labels (N,)."""
    dataset = open_dataset(source)
    transform = eval_transform(size, mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0)
    images = [transform(load_image(dataset.root / path)) for path in dataset.paths]
    return torch.stack(images), torch.tensor(dataset.labels)


def training_errors(
    depth: int, shortcut: str, images: Tensor, labels: Tensor, epochs: int, width: int, lr: float, seed: int
) -> list[float]:
    """Trains one network and returns the fraction of training photos it got wrong in each epoch.

    SGD with momentum 0.9, batches of 64, random mirroring; the learning rate rises for a fifth of the time,
    without which the deepest residual networks do not always start, and falls to 0.
    """
    torch.manual_seed(seed)
    network = cifar_resnet(int(labels.max()) + 1, depth=depth, shortcut=shortcut, width=width)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    steps = epochs * math.ceil(len(images) / 64)
    schedule = OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2, cycle_momentum=False)
    errors = []
    for _ in range(epochs):
        wrong = 0
        for batch in torch.randperm(len(images)).split(64):
            x, mirror = images[batch], torch.rand(len(batch), 1, 1, 1) < 0.5
            logits = network(torch.where(mirror, x.flip(3), x))
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            wrong += int((logits.argmax(1) != labels[batch]).sum())
        errors.append(wrong / len(images))
    return errors


def sweep(
    images: Tensor,
    labels: Tensor,
    depths: Sequence[int],
    seeds: Sequence[int],
    epochs: int,
    width: int,
    lr: float,
) -> Results:
    """Trains both kinds of network in every depth from every seed, and prints a line for each pair."""
    results = {}
    for depth in depths:
        for kind, shortcut in KINDS.items():
            results[kind, depth] = torch.tensor(
                [training_errors(depth, shortcut, images, labels, epochs, width, lr, seed) for seed in seeds]
            )
            last = results[kind, depth][:, -1]
            spread = f"{last.min():.1%} to {last.max():.1%}, n={len(seeds)}"
            print(f"{depth:3} layers, {kind:8}  training error {last.mean():6.1%}  ({spread})", flush=True)
    return results


def plot(results: Results, path: Path) -> None:
    """Draws the last training error over the depth: mean, lowest and highest of the seeds."""
    depths = sorted({depth for _, depth in results})
    series = []
    for kind, color in COLORS.items():
        last = torch.stack([results[kind, depth][:, -1] for depth in depths])  # depths x seeds
        points = list(zip(depths, last.mean(1).tolist(), strict=True))
        band = list(zip(last.amin(1).tolist(), last.amax(1).tolist(), strict=True))
        series.append(Series(kind, color, points, band))
    highest = max(float(errors[:, -1].max()) for errors in results.values())
    y = Axis(format=percent_tick, limits=(0.0, max(0.1, highest)))
    write_text(path, standalone(line_chart("Training error by depth", series, Axis("layers"), y)))


def main(arguments: Sequence[str] | None = None) -> Results:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", default="demo", help="any source that train.py takes")
    parser.add_argument("--size", type=int, default=16, help="pixels, both sides")
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 20, 32, 56], help="6n + 2 each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage; the paper has 16")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=Path("plain_vs_residual.svg"))
    args = parser.parse_args(arguments)
    images, labels = read_images(args.data, args.size)
    results = sweep(images, labels, args.depths, args.seeds, args.epochs, args.width, args.lr)
    plot(results, args.out)
    print(f"wrote {args.out}")
    return results


if __name__ == "__main__":
    main()
