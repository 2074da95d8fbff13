"""Make a folder to share: weights, model card, hubconf.py and SHA256SUMS."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_run
from flowers_torch.errors import printable
from flowers_torch.files.system import expand_home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write [packed/ beside the weights]")


def run(args: argparse.Namespace) -> None:
    from flowers_torch.deploy.pack import pack
    from flowers_torch.files.atomic import refuse_link
    from flowers_torch.runs.folder import find_run

    model = find_run(args.run)
    folder = args.out or refuse_link((model if model.is_dir() else model.parent) / "packed")
    for path in pack(model, expand_home(folder)):
        print(f"pack     {printable(path)}, {path.stat().st_size:,} bytes")
