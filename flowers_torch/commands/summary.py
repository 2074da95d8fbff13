"""Print a network's layers, output shapes, parameters and connections, as Keras does."""

import argparse

from flowers_torch.commands import add_arch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arch(parser)
    parser.add_argument("--classes", type=int, default=1000, metavar="N", help="outputs of the classifier [1000]")
    text = "width of a hidden layer of the head; 0: none [0]"
    parser.add_argument("--hidden", type=int, default=0, metavar="N", help=text)


def run(args: argparse.Namespace) -> None:
    from flowers_torch.models.factory import create_meta_model
    from flowers_torch.models.heads import set_head
    from flowers_torch.models.inspect.summary import summary

    model, size = create_meta_model(args.arch, args.classes, args.size)
    if args.hidden:
        import torch

        with torch.device("meta"):
            set_head(model, args.classes, args.hidden)
    print(summary(model, size, args.keras))
