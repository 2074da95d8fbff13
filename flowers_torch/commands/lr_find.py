"""`flowers-torch lr-find`: which learning rate a stage can take, from a sweep over growing rates."""

import argparse
import os
from pathlib import Path

from flowers_torch.commands import set_allocator, train
from flowers_torch.config import Config
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError, printable
from flowers_torch.shell import command_line

EXAMPLES = """examples:
  flowers-torch lr-find --arch tf_efficientnet_lite0 --weights offline --data my_photos/
  flowers-torch lr-find --data my_photos/ --stage head --plot head.svg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of training and those of the sweep."""
    train.add_arguments(parser)
    parser.description = "Train a few steps at growing learning rates and say which rate to try."
    parser.epilog = EXAMPLES
    _add_sweep(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that training does not have."""
    parser.add_argument("--stage", metavar="NAME", help="stage to try, such as head (the last)")
    parser.add_argument("--lowest", type=float, default=1e-6, metavar="LR", help="first rate (1e-6)")
    parser.add_argument("--highest", type=float, default=1.0, metavar="LR", help="last rate (1)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="batches (100)")
    parser.add_argument("--plot", metavar="FILE", help="SVG file for a chart of the loss over the rate")


def run(args: argparse.Namespace) -> int:
    """Sweeps and prints the suggestion with its reason."""
    if args.resume or args.origin or args.overwrite or args.dry_run:
        raise UsageError("lr-find knows no --resume, --from, --overwrite or --dry-run", "leave it out")
    if not 0 < args.lowest < args.highest <= 1e3:
        raise UsageError(f"--lowest {args.lowest:g} --highest {args.highest:g} is no range", "use 1e-6 and 1")
    if not 10 <= args.steps <= 10_000:
        raise UsageError(f"--steps {args.steps} is out of range", "use 10 .. 10000")
    if args.plot and not args.plot.endswith(".svg"):
        raise UsageError(f"cannot draw into {printable(args.plot)}", "name a file that ends in .svg")
    if args.cache:
        os.environ["FLOWERS_TORCH_CACHE"] = args.cache
    config = load_config(args.arch, args.data, args.config, train.overrides(args))
    number = stage_number(config, args.stage)

    from flowers_torch.files.atomic import write_text
    from flowers_torch.log import console, log
    from flowers_torch.report.charts import standalone, sweep_chart
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.stage import make_train_state
    from flowers_torch.training.lr_finder import lr_find

    with console():
        set_allocator(config)
        experiment, model = Experiment.new(config)
        stage = config.stages[number]
        state = make_train_state(experiment, model, stage, number)
        size = experiment.info.preprocessing.size
        state.network = experiment.acceleration.training_network(model, experiment.runtime, size)
        batches = experiment.loaders.training(experiment.splits["train"], stage.augment, stage.mixup)
        sweep = lr_find(state, batches, args.lowest, args.highest, args.steps)
        log.info(f"rate     {sweep.suggestion:g}: {sweep.reason}; now {stage.lr:g}")
        if args.plot:
            chart = sweep_chart(sweep.rates, sweep.losses, sweep.suggestion)
            write_text(Path(args.plot).expanduser(), standalone(chart))
            log.info(f"plot     {printable(args.plot)}")
        rate = ("--set", f"stages.{stage.name}.lr={sweep.suggestion:g}")
        log.info(f"next     {command_line('flowers-torch', 'train', *_of_training(args.command[2:]), *rate)}")
    return 0


def _of_training(arguments: list[str]) -> list[str]:
    """The arguments without those of the sweep."""
    sweep = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_sweep(sweep)
    return sweep.parse_known_args(arguments)[1]


def stage_number(config: Config, name: str | None) -> int:
    """The place of the stage to try, by its name; the last one without a name.

    Raises:
        UsageError: there is no such stage, or it has no learning rate.
    """
    names = [stage.name for stage in config.stages]
    name = name or names[-1]
    if name not in names:
        raise UsageError(f"--stage {printable(name, 40)}: there is no such stage", f"use {', '.join(names)}")
    number = names.index(name)
    if config.stages[number].is_fitted:
        others = [stage.name for stage in config.stages if not stage.is_fitted]
        fix = f"use --stage {others[-1]}" if others else f"set stages.{name}.optimizer=adamw"
        raise UsageError(f"stage {name} is fitted by L-BFGS, which has no learning rate", fix)
    return number
