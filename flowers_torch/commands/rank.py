"""`flowers-torch rank`: which backbone suits these photos, before any of them is trained."""

import argparse
import dataclasses
import os

from flowers_torch.commands import set_allocator, train
from flowers_torch.errors import UsageError

FLAGS = ("weights", "split", "groups", "size", "batch-size", "seed", "precision", "device", "threads")
EXAMPLES = """examples:
  flowers-torch rank my_photos/ --arch inception_v3,resnet50,tf_efficientnet_lite0
  flowers-torch rank my_photos/ --arch tf_efficientnet_lite0 --weights offline --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the photos, the networks and how to read them."""
    parser.description = (
        "Rank networks by a linear head on their frozen features: accuracy cross-validated over the training "
        "and validation photos, speed on this machine, license of the weights."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("data", metavar="DATA", help="as train --data")
    parser.add_argument("--arch", required=True, metavar="A,B,C", help="networks, of the zoo or of timm")
    train.add_fields(parser, FLAGS)
    parser.add_argument("--cache", metavar="DIR", help="where downloads and features are kept")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the networks, best first."""
    archs = [name for name in args.arch.split(",") if name]
    if not archs:
        raise UsageError("--arch names no network", "give such as --arch resnet50,inception_v3")
    if args.cache:
        os.environ["FLOWERS_TORCH_CACHE"] = args.cache
    from flowers_torch.config_file import load_config

    wanted = {flag.replace("-", "_"): getattr(args, flag.replace("-", "_"), None) for flag in train.FLAGS}
    changes = {name: value for name, value in wanted.items() if value is not None}
    config = load_config("", args.data, "", changes)

    from flowers_torch.log import console
    from flowers_torch.runs.ranking import rank_models

    with console(quiet=args.json):
        set_allocator(config)
        found = rank_models(config, archs)
    if args.json:
        from flowers_torch.files.atomic import to_json

        print(to_json([dataclasses.asdict(candidate) for candidate in found], indent=1))
        return 0
    width = max(len(candidate.arch) for candidate in found)
    print(f"{'network':{width}}  accuracy  95% interval     img/s  parameters  weights, license")
    for one in found:
        if one.problem:
            print(f"{one.arch:{width}}  not tried: {one.problem}")
            continue
        license = one.license or "that of the file"
        print(
            f"{one.arch:{width}}  {one.accuracy:8.4f}  {one.low:.3f} .. {one.high:.3f}"
            f"  {one.images_per_second:8.0f}  {one.parameters:10,}  {one.weights}, {license}"
        )
    return 0
