"""`flowers-torch plot`: a drawing of a network."""

import argparse
from pathlib import Path

from flowers_torch.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the drawing."""
    parser.description = "Draw a network's layers and how they are connected."
    parser.add_argument("arch", help="a network of the zoo or of timm")
    parser.add_argument("out", help="SVG file to write")
    parser.add_argument("--size", type=int, default=0, help="side of the picture, pixels")
    parser.add_argument("--keras", action="store_true", help="names and layers as Keras has them")


def run(args: argparse.Namespace) -> int:
    """Writes the drawing."""
    import torch

    from flowers_torch.models.factory import check_size, create_model
    from flowers_torch.models.inspect.plot import plot
    from flowers_torch.models.inspect.summary import layer_rows
    from flowers_torch.models.registry import find_entry

    size = args.size or find_entry(args.arch).preprocessing.size
    check_size(args.arch, size)
    with torch.device("meta"):
        model = create_model(args.arch, size=size)
    rows = layer_rows(model, size, args.keras)
    plot(rows, Path(args.out).expanduser(), f"{args.arch}, {size}x{size}")
    print(f"{len(rows)} layers drawn in {printable(args.out)}")
    return 0
