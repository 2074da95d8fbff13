"""`flowers-torch pack RUN`: a folder to give away or upload, with weights, card, hubconf and checksums."""

import argparse
from pathlib import Path

from flowers_torch.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of packing."""
    parser.description = "Make a folder to give away: weights, model card, hubconf.py, SHA256SUMS."
    parser.add_argument("model", help="run folder or model.safetensors")
    parser.add_argument("--out", type=Path, metavar="DIR", help="instead of packed/ beside the weights")


def run(args: argparse.Namespace) -> int:
    """Writes the folder and prints what is in it."""
    from flowers_torch.deploy.pack import pack

    model = Path(args.model).expanduser()
    folder = args.out or (model if model.is_dir() else model.parent) / "packed"
    for path in pack(model, folder.expanduser()):
        print(f"pack     {printable(path)}, {path.stat().st_size:,} bytes")
    return 0
