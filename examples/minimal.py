"""The method of this package in plain PyTorch: transfer learning in two stages, in one file.

    python examples/minimal.py my_photos/ --arch resnet50 --pretrained

Stage 1 trains a new head on the frozen backbone, stage 2 everything at a lower learning rate. The weights with the
lowest calibrated validation loss are tested once. The package computes the same numbers (a test compares them).
"""

import argparse
import copy
import hashlib
import math
import re
from itertools import accumulate
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

# Name, epochs, highest learning rate, weight decay, warm-up epochs.
STAGES = (("head", 2, 3e-3, 0.0, 0.0), ("finetune", 4, 3e-4, 0.05, 0.5))
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts class2 before class10."""
    parts = re.split(r"([0-9]+)", path.as_posix().casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_image(path: Path, size: int, crop: float, interpolation: str) -> Tensor:
    """The center of an image, uint8 (3, size, size)."""
    pixels = pil_to_tensor(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    shorter = math.floor(size / crop)
    height, width = (int(shorter * side / min(pixels.shape[1:])) for side in pixels.shape[1:])
    resized = F.interpolate(pixels[None], (height, width), mode=interpolation, antialias=True)[0]
    return center_crop(resized, [size, size])


def number(name: str, seed: int) -> float:
    """In 0..1, depends on a name and the seed only."""
    return int.from_bytes(hashlib.sha256(b"%d\0" % seed + name.encode()).digest()[:8], "big") / 2**64


def choose_splits(paths: list[Path], seed: int) -> list[str]:
    """The split of each image. Those of a class are cut in the order of their numbers."""
    splits = dict[Path, str]()
    for name in {path.parts[0] for path in paths}:
        own = sorted((p for p in paths if p.parts[0] == name), key=lambda p: number(p.as_posix(), seed))
        cuts = [round(end * len(own), 6) + number(name, seed) - 1 for end in (*accumulate(SPLITS.values()),)[:2]]
        splits |= {path: [*SPLITS][sum(i >= cut for cut in cuts)] for i, path in enumerate(own)}
    return [splits[path] for path in paths]


def batches_of_epoch(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Shuffled positions in batches; a last batch of one image joins the one before it."""
    digest = hashlib.blake2b(repr((seed, epoch, -1)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    batches = list(torch.randperm(count, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of normalized images."""
    model.eval()
    return torch.cat([model(chunk) for chunk in images.split(32)])


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest cross-entropy, on a grid; a prior draws it towards 1 for small sets."""
    grid = [math.exp(x / 100) for x in range(-300, 301)]
    losses = [F.cross_entropy(logits / t, labels, reduction="sum") + 16 * (1 / t + math.log(t)) for t in grid]
    return grid[int(torch.stack(losses).argmin())]


def main(arguments: list[str] | None = None) -> dict[str, list[float] | float]:
    """Trains and tests; returns the validation loss of each epoch and the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with a folder of images for each class")
    parser.add_argument("--arch", default="resnet50", help="any timm network (resnet50)")
    parser.add_argument("--pretrained", action="store_true", help="start from timm's pretrained weights")
    parser.add_argument("--size", type=int, default=224, help="input side in pixels (224)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step (32)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    args = parser.parse_args(arguments)
    paths = sorted((path.relative_to(args.data) for path in args.data.glob("*/*")), key=natural)
    classes = sorted({path.parts[0] for path in paths}, key=lambda name: natural(Path(name)))
    torch.manual_seed(args.seed)
    model = timm.create_model(args.arch, pretrained=args.pretrained, num_classes=len(classes))
    model.reset_classifier(len(classes))  # a new head
    cfg = model.pretrained_cfg
    how = args.size, cfg["crop_pct"], cfg["interpolation"]
    pixels = torch.stack([read_image(args.data / path, *how) for path in paths])
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = (pixels.float() / 255 - mean) / std
    labels = torch.tensor([classes.index(path.parts[0]) for path in paths])
    splits = choose_splits(paths, args.seed)
    train, val, test = (torch.tensor([s == split for s in splits]).nonzero()[:, 0] for split in SPLITS)

    losses, best_loss, best, temperature, epochs_before = [], math.inf, model.state_dict(), 1.0, 0
    for name, epochs, highest, decay, warmup_epochs in STAGES:
        head = set(model.get_classifier().parameters())
        for parameter in model.parameters():
            parameter.requires_grad_(name != "head" or parameter in head)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups)
        per_epoch = len(batches_of_epoch(len(train), args.batch_size, args.seed, 0))
        steps, warmup = epochs * per_epoch, round(warmup_epochs * per_epoch)
        for epoch in range(epochs):
            model.train(name != "head")  # a frozen backbone keeps its batch-norm statistics
            batches = batches_of_epoch(len(train), args.batch_size, args.seed, epochs_before + epoch)
            for step, batch in enumerate(batches, start=epoch * per_epoch):
                fraction = (step - warmup) / max(1, steps - warmup)
                cosine = highest * 0.5 * (1 + math.cos(math.pi * fraction))
                lr = highest * (step + 1) / (warmup + 1) if step < warmup else cosine
                for group in optimizer.param_groups:
                    group["lr"] = lr
                inputs = images[train[batch]]
                inputs = inputs.flip(3) if (epochs_before + epoch) % 2 else inputs  # mirrored every other epoch
                loss = F.cross_entropy(model(inputs), labels[train[batch]])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            logits = predict(model, images[val])
            losses.append(float(F.cross_entropy(logits, labels[val])))
            t = fit_temperature(logits, labels[val])
            calibrated = float(F.cross_entropy(logits / t, labels[val]))
            print(f"{name} {epoch + 1}/{epochs}  validation loss {losses[-1]:.4f}, calibrated {calibrated:.4f}")
            if calibrated < best_loss:
                best_loss, best, temperature = calibrated, copy.deepcopy(model.state_dict()), t
        epochs_before += epochs
    model.load_state_dict(best)
    correct = int((predict(model, images[test]).argmax(1) == labels[test]).sum())
    print(f"test accuracy {correct / len(test):.4f} ({correct} of {len(test)}), temperature {temperature:.2f}")
    return {"losses": losses, "accuracy": correct / len(test)}


if __name__ == "__main__":
    main()
