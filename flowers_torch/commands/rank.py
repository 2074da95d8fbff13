"""Rank networks on your photos by a linear head on their frozen features.

The accuracy is cross-validated over the training and validation photos; the test photos are not used.
"""

import argparse

from flowers_torch.commands import add_json, print_json, set_allocator, train
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError

EXAMPLES = """examples:
  flowers-torch rank my_photos/ --arch inception_v3,resnet50,tf_efficientnet_lite0
  flowers-torch rank my_photos/ --arch tf_efficientnet_lite0 --weights offline --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, archive, table, hf:NAME, flowers17 or demo")
    parser.add_argument("--arch", required=True, metavar="A,B,C", help="registered networks or timm names")
    train.add_fields(parser, list(train.FLAGS))
    parser.add_argument("--cache", metavar="DIR", help="folder for downloads and features")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    archs = [name for name in args.arch.split(",") if name]
    if not archs:
        raise UsageError("--arch names no network", "give a list such as --arch resnet50,inception_v3")
    config = load_config("", args.data, "", train.field_changes(args))

    from flowers_torch.log import console
    from flowers_torch.runs.ranking import rank_models

    with console(quiet=args.json):
        set_allocator(config)
        found = rank_models(config, archs)
    if args.json:
        print_json([vars(candidate) for candidate in found])
        return
    width = max(len(candidate.arch) for candidate in found)
    print(f"{'network':{width}}  accuracy  95% interval     img/s  parameters  weights, license")
    for one in found:
        if one.problem:
            print(f"{one.arch:{width}}  not tried: {one.problem}")
            continue
        print(
            f"{one.arch:{width}}  {one.accuracy:8.4f}  {one.low:.3f} .. {one.high:.3f}"
            f"  {one.images_per_second:8.0f}  {one.parameters:10,}"
            f"  {one.weights}, {one.license or 'license of the file'}"
        )
