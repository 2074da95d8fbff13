"""Trains plain and residual networks of growing depth on the same photos and compares their training errors.

    python examples/plain_vs_residual.py        about 8 minutes on one core (Intel Xeon with AMX)
    python examples/plain_vs_residual.py --data my_photos/ --depths 8 20 56 --seeds 0 1 2

Each residual network is a thin ResNet of 6n + 2 layers. Its plain twin has the same layers without the
shortcuts. The comparison uses the error on the *training* photos: a deeper network with a higher training
error does not overfit; it is harder to optimize.
Source: He et al., https://arxiv.org/abs/1512.03385, figures 1 and 6.

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
import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from flowers_torch.data.augment import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.sources import open_photos
from flowers_torch.models.resnet_cifar import cifar_resnet

SHORTCUTS = {"plain": "none", "residual": "zero_pad"}


def read_photos(source: str, size: int) -> tuple[Tensor, Tensor]:
    """All photos of a source as one tensor (N, 3, size, size), and their labels (N,)."""
    photos = open_photos(source)
    transform = eval_transform(size, mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0)
    images = [transform(load_image(photos.root / path)) for path in photos.paths]
    return torch.stack(images), torch.tensor(photos.labels)


def training_error(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, lr: float) -> float:
    """Trains a network.

    SGD with momentum 0.9, batches of 64 and random mirroring. The learning rate rises for the first fifth of
    the steps, because the deepest residual networks may not learn without that, and then falls to 0.

    Returns:
        The fraction of misclassified training photos in the last epoch.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    steps = epochs * math.ceil(len(images) / 64)
    schedule = OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2, cycle_momentum=False)
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
    return wrong / len(images)


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, int], float]:
    """Prints a line for each network; returns the mean training error by kind and depth."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", default="demo", help="any source that train.py takes (demo)")
    parser.add_argument("--size", type=int, default=16, help="image side in pixels (16)")
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 20, 32, 56], help="6n + 2 (8 20 32 56)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds (0 1 2)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs for each network (30)")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage (8; paper: 16)")
    parser.add_argument("--lr", type=float, default=0.05, help="highest learning rate (0.05)")
    args = parser.parse_args(arguments)
    images, labels = read_photos(args.data, args.size)
    means = {}
    for depth in args.depths:
        for kind, shortcut in SHORTCUTS.items():
            errors = []
            for seed in args.seeds:
                torch.manual_seed(seed)
                network = cifar_resnet(len(labels.unique()), depth=depth, shortcut=shortcut, width=args.width)
                errors.append(training_error(network, images, labels, args.epochs, args.lr))
            mean = means[kind, depth] = statistics.fmean(errors)
            spread = f"{min(errors):.1%} to {max(errors):.1%}, n={len(errors)}"
            print(f"{depth:3} layers, {kind:8}  training error {mean:6.1%}  ({spread})", flush=True)
    return means


if __name__ == "__main__":
    main()
