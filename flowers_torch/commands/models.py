"""List networks: the recommended ones, then the other registered ones, then timm's.

Parameters are counted with 1000 classes and, where Keras has the network, as Keras does. Sizes are pixels.
The weights are on this machine (offline, cached) or can be downloaded. The top-1 accuracy on ImageNet is
the published one, where it is known; the license is that of the weights. With --keras: what Keras published
of each network, in megabytes, accuracies on ImageNet and layers, and the smallest input of Keras 2.0.
"""

import argparse
from typing import Any

from flowers_torch.commands import add_json, print_json
from flowers_torch.errors import UsageError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "part of the name, or a glob such as 'res*50'"
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help=text)
    parser.add_argument("--keras", action="store_true", help="only the networks of keras.applications")
    parser.add_argument("--timm", action="store_true", help="timm's networks too; a pattern always searches them")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    import fnmatch

    from flowers_torch.models.recommended import RECOMMENDED
    from flowers_torch.models.registry import REGISTRY, list_models

    pattern = args.pattern if any(c in args.pattern for c in "*?[") else f"*{args.pattern}*"
    recommended = [backbone.arch for backbone in RECOMMENDED]
    names = [*recommended, *(name for name in list_models() if name not in recommended)]
    names = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not args.pattern and not args.timm:
        names = [name for name in names if name in REGISTRY or name in recommended]
    if args.keras:
        names = [name for name in names if name in REGISTRY and REGISTRY[name].keras_name]
    if not names:
        raise UsageError(f"no network matches {printable(args.pattern)!r}", "leave out the pattern")
    if args.json:
        print_json([_row(name) for name in names])
        return
    width = max(map(len, names))
    if args.keras:
        head = f"{'name':{width}} {'parameters':>12} {'size':>5} {'min':>4} {'Keras min':>9}"
        print(f"{head} {'MB':>4} {'top-1':>6} {'top-5':>6} {'depth':>5}  keras")
        for row in map(_row, names):
            said = row["published"]
            numbers = f"{row['parameters']:>12,} {row['size']:>5} {row['min_size']:>4} {said['min_size']:>9}"
            scores = f"{said['megabytes']:>4} {said['top1']:>6.3f} {said['top5']:>6.3f} {said.get('depth', '-'):>5}"
            print(f"{row['name']:{width}} {numbers} {scores}  {row['keras']}", flush=True)
        return
    print(f"{'name':{width}} {'parameters':>12} {'size':>5} {'min':>4}  {'weights':17}{'top-1':7}{'license':18}keras")
    for name in names:
        row = _row(name)
        numbers = f"{row['parameters']:>12,} {row['size']:>5} {row['min_size']:>4}"
        top1 = f"{row['top1']:.1f}" if row["top1"] else "-"
        line = f"{name:{width}} {numbers}  {row['weights'] or '-':17}{top1:7}{row['license'] or '-':18}{row['keras']}"
        print(line.rstrip(), flush=True)


def _row(name: str) -> dict[str, Any]:
    import torch

    from flowers_torch.models.factory import create_model
    from flowers_torch.models.inspect.summary import parameter_counts
    from flowers_torch.models.keras.names import published_by_keras
    from flowers_torch.models.recommended import RECOMMENDED, where_weights_are
    from flowers_torch.models.registry import find_entry, imagenet_entry

    entry = find_entry(name)
    with torch.device("meta"):  # shapes only: the largest networks have billions of parameters
        parameters = parameter_counts(create_model(name))[0]
    return {
        "name": name,
        "parameters": parameters,
        "size": entry.preprocessing.size,
        "min_size": entry.min_size,
        "weights": where_weights_are(name, parameters),
        "top1": next((one.top1 for one in RECOMMENDED if one.arch == name), 0.0),
        "mean": entry.preprocessing.mean,
        "std": entry.preprocessing.std,
        "license": imagenet_entry(name).license if entry.timm_name else "",
        "keras": entry.keras_name,
        "published": published_by_keras(entry.keras_name, entry.min_size) if entry.keras_name else {},
    }
