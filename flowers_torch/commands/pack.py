"""Make a folder to share: weights, model card, hubconf.py, timm's config.json, and SHA256SUMS."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_run
from flowers_torch.errors import UsageError, printable
from flowers_torch.files.system import expand_home

EXAMPLES = """examples:
  flowers-torch pack runs/photos-inception_v3-1
  flowers-torch pack latest --push OWNER/NAME     and upload it to the Hugging Face hub
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write [packed/ beside the weights]")
    text = "upload the folder to OWNER/NAME on the Hugging Face hub; a new repository is private"
    parser.add_argument("--push", default="", metavar="REPO", help=text)
    parser.add_argument("--public", action="store_true", help="make the new repository of --push public")


def run(args: argparse.Namespace) -> None:
    if args.public and not args.push:
        raise UsageError("--public needs --push", "name the repository with --push OWNER/NAME")

    from flowers_torch.deploy.pack import CONFIG, pack
    from flowers_torch.deploy.push import check_push, push
    from flowers_torch.files.atomic import refuse_link
    from flowers_torch.runs.folder import find_run

    model = find_run(args.run)
    folder = args.out or refuse_link((model if model.is_dir() else model.parent) / "packed")
    folder = expand_home(folder)
    if args.push:
        check_push(args.push)
    written = pack(model, folder)
    for path in written:
        print(f"pack     {printable(path)}, {path.stat().st_size:,} bytes")
    if CONFIG not in {path.name for path in written}:
        print("note     timm and transformers cannot load this network: it needs flowers_torch")
    if args.push:
        print(f"push     {push(folder, args.push, args.public)}")
