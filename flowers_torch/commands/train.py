"""Train a network on photos in class folders: first a head on the frozen backbone, then all of it."""

import argparse
import dataclasses
import tomllib
from collections.abc import Sequence
from typing import Any

from flowers_torch.commands import set_allocator, set_allocator_of_run
from flowers_torch.config import HEAD_ONLY, Config
from flowers_torch.config_file import load_config
from flowers_torch.data.quality.ahead import inspection_ahead
from flowers_torch.errors import UsageError, printable

EXAMPLES = """examples:
  flowers-torch train --arch inception_v3                Flowers-17, ImageNet weights, two stages
  flowers-torch train --arch inception_v3 --data demo    drawn flowers, no download
  flowers-torch train --arch tf_efficientnet_lite0 --weights offline --data my_photos/
"""

# Flags that set the field of the same name in config.py, with their placeholder.
FLAGS = {
    **{"weights": "NAME", "test": "DATA", "split": "A/B/C", "classes": "NAME", "groups": "NAME"},
    **{"exclude": "FILE", "mirror": "NAME", "size": "N", "batch-size": "N", "seed": "N", "precision": "NAME"},
    **{"accelerate": "NAME", "device": "NAME", "workers": "N", "threads": "N"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--arch NAME] [--data DATA] [options]"
    add_config(parser)
    parser.add_argument("--out", default="", metavar="DIR", help="run folder [runs/<data>-<arch>-<n>]")
    parser.add_argument("--overwrite", action="store_true", help="let --out replace an earlier run")
    parser.add_argument("--dry-run", action="store_true", help="print splits, network, memory and time only")
    parser.add_argument("--resume", metavar="RUN", help="interrupted run to resume, or latest")
    parser.add_argument("--from", dest="origin", metavar="RUN", help="run that provides options and weights")
    # Left out of the help: the errors that they lift name them.
    parser.add_argument("--allow-config-change", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--allow-data-change", action="store_true", help=argparse.SUPPRESS)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that make a configuration."""
    parser.add_argument("--arch", default="", metavar="NAME", help="a registered network or any timm name")
    parser.add_argument("--data", default="", help="folder, archive, table, hf:NAME, flowers17 or demo")
    parser.add_argument("--config", default="", metavar="FILE", help="TOML file with options; flags win")
    add_options(parser, tuple(FLAGS))
    parser.add_argument("--cache", metavar="DIR", help="folder for downloads and features")


def add_fields(parser: argparse.ArgumentParser, flags: Sequence[str]) -> None:
    """Adds flags that set the field of the same name, with its help text and default."""
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(Config)}
    for flag in flags:
        field = fields[flag]
        text = f"{field.metadata['help']} [{field.default}]".replace(" []", "").replace("%", "%%")
        parser.add_argument(f"--{flag}", type=type(field.default), help=text, metavar=FLAGS[flag])


def add_options(parser: argparse.ArgumentParser, flags: Sequence[str]) -> None:
    """Adds what `overrides` reads: some of `FLAGS`, and the flags that stand for several options."""
    add_fields(parser, flags)
    parser.add_argument("--skip-bad", action="store_true", help="leave out photos that cannot be read")
    parser.add_argument("--head-only", action="store_true", help="fit a linear head in seconds, nothing else")
    parser.add_argument("--epochs", metavar="A,B", help="epochs of each stage, such as 2,5")
    parser.add_argument("--time", metavar="T", help="time limit for the epochs, such as 20m or 1.5h")
    text = "any other option, such as stages.finetune.lr=1e-4"
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help=text)
    parser.add_argument("--quiet", action="store_true", help="print the result only")


def run(args: argparse.Namespace) -> None:
    if args.resume and (args.origin or args.config or args.dry_run or args.overwrite):  # guard: K05
        what = "--resume cannot be used with --from, --config, --dry-run or --overwrite"
        raise UsageError(what, "leave out one of them")
    if args.origin and (args.config or args.arch):
        raise UsageError("--from takes the network and the options from its run", "leave out --arch and --config")
    for flag in ("allow_config_change", "allow_data_change"):
        if getattr(args, flag) and not args.resume:
            raise UsageError(f"--{flag.replace('_', '-')} needs --resume", "leave it out")
    changes, config = overrides(args), None
    if args.resume:
        changes |= {name: value for name, value in (("arch", args.arch), ("data", args.data)) if value}
    elif args.origin:
        config = load_config(data=args.data, **start_from(args.origin, changes))
    else:
        config = load_config(args.arch, args.data, args.config, changes)

    if config is None or config.exclude:  # most results are in the cache; what is excluded may not be decodable
        _train(args, config, changes)
        return
    with inspection_ahead(config.data, config.classes, config.groups, config.test):
        _train(args, config, changes)


def _train(args: argparse.Namespace, config: Config | None, changes: dict[str, Any]) -> None:
    from flowers_torch.log import console
    from flowers_torch.runs import cost, recipe
    from flowers_torch.runs.folder import find_run_folder

    with console(args.quiet):
        if config is None:
            folder = find_run_folder(args.resume)
            set_allocator_of_run(folder, changes)
            recipe.resume(folder, changes, args.allow_config_change, args.allow_data_change)
            return
        set_allocator(config)
        if args.dry_run:
            cost.dry_run(config)
        else:
            recipe.train(config, args.out, args.overwrite, args.command)


def start_from(run: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `load_config` for a new run with the options and the best weights of an earlier one."""
    from flowers_torch.runs.folder import find_run_folder

    folder = find_run_folder(run)
    weights = folder / "model.safetensors"
    if not weights.is_file() or not (folder / "config.toml").is_file():
        raise UsageError(f"--from {printable(folder)} is not a run with weights", "name the folder of a run")
    return {"file": str(folder / "config.toml"), "overrides": {"weights": str(weights), "keras_input": ""} | changes}


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The changes to the configuration that the flags state, by field name."""
    changes = field_changes(args)
    if args.skip_bad:
        changes["skip_bad"] = True
    if args.head_only:
        changes |= HEAD_ONLY
    if args.epochs is not None:
        try:
            changes["epochs"] = [int(count) for count in args.epochs.split(",")]
        except ValueError:
            what = f"--epochs {printable(args.epochs)} is not a valid list of numbers"
            raise UsageError(what, "give a list such as 2,5") from None
    if args.time is not None:
        changes["minutes"] = minutes(args.time)
    for assignment in args.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {printable(assignment)} has no =", "use --set KEY=VALUE")
        try:
            changes[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = text  # a bare word is a string
    return changes


def field_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the flags of `FLAGS` that were given, by field name."""
    names = [flag.replace("-", "_") for flag in FLAGS]
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def minutes(text: str) -> float:
    """Minutes from a text such as `90s`, `20m` or `1.5h`; UsageError for another one."""
    units = {"s": 1 / 60, "m": 1.0, "h": 60.0}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        what = f"--time {printable(text)} is not a valid time"
        raise UsageError(what, "give a time such as 90s, 20m or 1.5h") from None
