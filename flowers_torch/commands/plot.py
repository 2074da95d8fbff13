"""Draw a network's layers and their connections."""

import argparse

from flowers_torch.commands import add_arch
from flowers_torch.errors import plural, printable
from flowers_torch.files.system import expand_home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arch(parser)
    parser.add_argument("out", metavar="OUT", help="SVG file to write")


def run(args: argparse.Namespace) -> None:
    from flowers_torch.models.factory import create_meta_model
    from flowers_torch.models.inspect.plot import plot
    from flowers_torch.models.inspect.summary import layer_rows

    model, size = create_meta_model(args.arch, size=args.size)
    rows = layer_rows(model, size, args.keras)
    plot(rows, expand_home(args.out), f"{args.arch}, {size}x{size}")
    print(f"{plural(rows, 'layer')} drawn in {printable(args.out)}")
