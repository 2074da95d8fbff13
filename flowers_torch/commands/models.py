"""`flowers-torch models`: the networks that there are."""

import argparse

from flowers_torch.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the list."""
    parser.description = (
        "List networks: the zoo's, then timm's. Parameters are counted with 1000 classes and, where Keras "
        "has the network, as Keras does; sizes are pixels; the license is of what --weights imagenet fetches."
    )
    parser.add_argument("pattern", nargs="?", default="", help="part of the name, or a glob such as 'res*50'")
    parser.add_argument("--keras", action="store_true", help="only those of keras.applications")
    parser.add_argument("--timm", action="store_true", help="timm's too (with a pattern they always are)")


def run(args: argparse.Namespace) -> int:
    """Prints one line for each network."""
    import fnmatch

    import torch

    from flowers_torch.models.factory import create_model
    from flowers_torch.models.inspect.summary import parameter_counts
    from flowers_torch.models.registry import REGISTRY, find_entry, list_models

    pattern = args.pattern if any(c in args.pattern for c in "*?[") else f"*{args.pattern}*"
    names = [name for name in list_models() if fnmatch.fnmatchcase(name, pattern)]
    if not args.pattern and not args.timm:
        names = [name for name in names if name in REGISTRY]
    if args.keras:
        names = [name for name in names if name in REGISTRY and REGISTRY[name].keras_name]
    if not names:
        raise UsageError(f"no network matches {args.pattern!r}", "leave the pattern out to see them all")
    width = max(map(len, names))
    head = f"{'name':{width}} {'parameters':>12} {'size':>5} {'min':>4}  {'mean':20}{'std':20}"
    print(f"{head}{'license':18}keras")
    for name in names:
        entry = find_entry(name)
        known = entry.preprocessing
        with torch.device("meta"):  # shapes alone: the largest networks have billions of parameters
            count = f"{parameter_counts(create_model(name))[0]:,}"
        mean, std = (",".join(f"{value:.3g}" for value in values) for values in (known.mean, known.std))
        license = entry.license if entry.timm_name else "-"
        line = f"{name:{width}} {count:>12} {known.size:>5} {entry.min_size:>4}  {mean:20}{std:20}"
        print(f"{line}{license:18}{entry.keras_name}".rstrip(), flush=True)
    return 0
