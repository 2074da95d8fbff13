"""`flowers-torch layers`: names that freezing and features take, and Keras's numbers for them."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the list."""
    parser.description = "List a network's layers in order of execution, or in Keras's order with its names."
    parser.add_argument("arch", help="a network of the zoo or of timm")
    parser.add_argument("--keras", action="store_true", help="Keras's numbers and names beside ours")
    parser.add_argument("--size", type=int, default=0, help="side of the picture, pixels")


def run(args: argparse.Namespace) -> int:
    """Prints one line for each layer."""
    import torch

    from flowers_torch.models.factory import check_size, create_model
    from flowers_torch.models.inspect.summary import layer_rows
    from flowers_torch.models.keras.layers import keras_layers
    from flowers_torch.models.registry import find_entry

    size = args.size or find_entry(args.arch).preprocessing.size
    check_size(args.arch, size)
    with torch.device("meta"):
        model = create_model(args.arch, size=size)
    rows = keras_layers(model, size) if args.keras else layer_rows(model, size)
    if args.keras:
        print("First N layers of Keras's model.layers (without head) = all lines with a number below N.")
    names = [row.name for row in rows]
    width = max(map(len, names))
    for number, row in enumerate(rows):
        ours = f"  {row.module}" if args.keras else ""
        shape = "x".join(map(str, row.shape[1:]))
        print(f"{number:4} {row.name:{width}} {row.kind:22} {shape:14} {row.parameters:>10,}{ours}")
    return 0
