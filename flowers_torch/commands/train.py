"""`flowers-torch train`, also `python train.py`: the two-stage recipe from the command line."""

import argparse
import dataclasses
import os
import tomllib
from collections.abc import Sequence
from typing import Any

from flowers_torch.commands import set_allocator, set_allocator_of_run
from flowers_torch.config import HEAD_ONLY, Config
from flowers_torch.errors import UsageError, printable

EXAMPLES = """examples:
  python train.py --arch inception_v3                    Flowers-17, ImageNet weights, two stages
  python train.py --arch inception_v3 --data demo        drawn flowers, no download
  python train.py --arch tf_efficientnet_lite0 --weights offline --data my_photos/
"""

# Flags that set the field of the same name; config.py has their meaning.
FLAGS = (
    *("weights", "keras-input", "split", "groups", "exclude", "size", "batch-size", "seed"),
    *("precision", "accelerate", "device", "workers", "threads"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of training."""
    parser.usage = f"{parser.prog} [--arch NAME] [--data DATA] [options]"
    parser.description = "Train a network on photos: a head on the frozen backbone, then everything."
    parser.epilog = EXAMPLES
    parser.add_argument("--arch", default="", metavar="NAME", help="network, of the zoo or of timm")
    parser.add_argument("--data", default="", help="folder | archive | flowers17 | demo")
    parser.add_argument("--config", default="", metavar="FILE", help="TOML with any option; flags win")
    add_options(parser, tuple(FLAGS))
    parser.add_argument("--cache", metavar="DIR", help="where downloads are kept")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with an interrupted run: its folder, or latest"
    )
    # Left out of the help: the refusal that they lift names them.
    parser.add_argument("--allow-config-change", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--allow-data-change", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--from", dest="origin", metavar="RUN", help="begin anew with a run's options and weights"
    )
    parser.add_argument("--out", default="", metavar="DIR", help="run folder [runs/<data>-<arch>-<n>]")
    parser.add_argument("--overwrite", action="store_true", help="let --out replace an earlier run")
    parser.add_argument("--dry-run", action="store_true", help="show data, model, stages, memory, time; stop")


def add_fields(parser: argparse.ArgumentParser, flags: Sequence[str]) -> None:
    """Adds flags that set the field of the same name, with its help text and default."""
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(Config)}
    for flag in flags:
        field = fields[flag]
        kind = type(field.default)
        text = f"{field.metadata['help']} [{field.default}]".replace(" []", "").replace("%", "%%")
        parser.add_argument(f"--{flag}", type=kind, help=text, metavar="N" if kind is int else "X")


def add_options(parser: argparse.ArgumentParser, flags: Sequence[str]) -> None:
    """Adds what `overrides` reads: some of `FLAGS`, and the flags that stand for several options."""
    add_fields(parser, flags)
    parser.add_argument("--quiet", action="store_true", help="print the result and the report's place only")
    parser.add_argument("--skip-bad", action="store_true", help="leave out photos that cannot be read")
    parser.add_argument("--head-only", action="store_true", help="fit a linear head in seconds, no more")
    parser.add_argument("--epochs", metavar="A,B", help="epochs of each stage, as 2,5")
    parser.add_argument("--time", metavar="T", help="fit the epochs to this, as 20m or 1.5h")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="K=V",
        help="any other option, as stages.finetune.lr=1e-4",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, resumes or estimates."""
    changes = overrides(args)
    if args.resume and (args.origin or args.config or args.dry_run or args.overwrite):  # guard: K05
        raise UsageError(
            "--resume goes on with a run; --from, --config, --dry-run, --overwrite begin one",
            "give one of them",
        )
    if args.origin and (args.config or args.arch):
        raise UsageError(
            "--from takes the network and the options of its run", "leave out --arch and --config"
        )
    for flag in ("allow_config_change", "allow_data_change"):
        if getattr(args, flag) and not args.resume:
            raise UsageError(f"--{flag.replace('_', '-')} is for --resume", "leave it out")
    if args.cache:
        os.environ["FLOWERS_TORCH_CACHE"] = args.cache
    from flowers_torch.config_file import load_config

    if args.resume:
        config = None
        changes |= {name: value for name, value in (("arch", args.arch), ("data", args.data)) if value}
    elif args.origin:
        config = load_config(data=args.data, **start_from(args.origin, changes))
    else:
        config = load_config(args.arch, args.data, args.config, changes)

    from flowers_torch.log import console
    from flowers_torch.runs import cost, recipe
    from flowers_torch.runs.folder import find_run

    with console(args.quiet):
        if config is None:
            folder = find_run(args.resume)
            set_allocator_of_run(folder, changes)
            recipe.resume(folder, changes, args.allow_config_change, args.allow_data_change)
            return 0
        set_allocator(config)
        if args.dry_run:
            cost.dry_run(config)
        else:
            recipe.train(config, args.out, args.overwrite, args.command)
    return 0


def start_from(run: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `load_config` for a new run with an earlier one's options, from its best weights on."""
    from flowers_torch.runs.folder import find_run

    folder = find_run(run)
    weights = folder / "model.safetensors"
    if not weights.is_file() or not (folder / "config.toml").is_file():
        raise UsageError(f"--from {printable(folder)} is no run with weights", "name the folder of a run")
    return {
        "file": str(folder / "config.toml"),
        "overrides": {"weights": str(weights), "keras_input": ""} | changes,
    }


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Changes to the configuration by field name, as the flags ask for."""
    fields = {flag.replace("-", "_"): getattr(args, flag.replace("-", "_")) for flag in FLAGS}
    changes = {name: value for name, value in fields.items() if value is not None}
    if args.skip_bad:
        changes["skip_bad"] = True
    if args.head_only:
        changes |= HEAD_ONLY
    if args.epochs is not None:
        try:
            counts = [int(part) for part in args.epochs.split(",")]
        except ValueError:
            raise UsageError(f"--epochs {printable(args.epochs)} is no list", "use such as 2,5") from None
        changes["epochs"] = counts
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


def minutes(text: str) -> float:
    """Minutes from such as `90s`, `20m` or `1.5h`.

    Raises:
        UsageError: no such text.
    """
    units = {"s": 1 / 60, "m": 1.0, "h": 60.0}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise UsageError(f"--time {printable(text)} is no time", "use such as 90s, 20m or 1.5h") from None
