"""`flowers-torch summary`: the table of a network's layers."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the table."""
    parser.description = "Print a network's layers, output shapes, parameters and connections, as Keras does."
    parser.add_argument("arch", help="a network of the zoo or of timm")
    parser.add_argument("--classes", type=int, default=1000, metavar="N", help="outputs of the classifier")
    parser.add_argument(
        "--hidden", type=int, default=0, metavar="N", help="width of a hidden layer of the head"
    )
    parser.add_argument("--size", type=int, default=0, help="side of the picture, pixels")
    parser.add_argument("--keras", action="store_true", help="names, order and shapes as Keras has them")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    import torch

    from flowers_torch.models.factory import check_size, create_model
    from flowers_torch.models.heads import set_head
    from flowers_torch.models.inspect.summary import summary
    from flowers_torch.models.registry import find_entry

    size = args.size or find_entry(args.arch).preprocessing.size
    check_size(args.arch, size)
    with torch.device("meta"):
        model = create_model(args.arch, args.classes, size=size)
        if args.hidden:
            set_head(model, args.classes, args.hidden)
    print(summary(model, size, args.keras))
    return 0
