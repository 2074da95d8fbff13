"""Find a learning rate for a stage: train a few steps at increasing rates."""

import argparse

from flowers_torch.commands import set_allocator, train
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError, printable
from flowers_torch.files.system import expand_home
from flowers_torch.shell import command_line

EXAMPLES = """examples:
  flowers-torch lr-find --arch tf_efficientnet_lite0 --weights offline --data my_photos/
  flowers-torch lr-find --data my_photos/ --stage head --plot head.svg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_config(parser)
    _add_sweep(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", metavar="NAME", help="stage to train, such as head [the last one]")
    parser.add_argument("--lowest", type=float, default=1e-6, metavar="LR", help="first rate [1e-6]")
    parser.add_argument("--highest", type=float, default=1.0, metavar="LR", help="last rate [1]")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="number of batches [100]")
    parser.add_argument("--plot", metavar="FILE", help="SVG file for a chart of loss over rate")


def run(args: argparse.Namespace) -> None:
    if not 0 < args.lowest < args.highest <= 1e3:
        raise UsageError(f"--lowest {args.lowest:g} --highest {args.highest:g} is not a valid range", "use 1e-6 and 1")
    if not 10 <= args.steps <= 10_000:
        raise UsageError(f"--steps {args.steps} is out of range", "use 10 .. 10000")
    if args.plot and not args.plot.endswith(".svg"):
        what = f"--plot {printable(args.plot)} is not a valid file name: expected .svg"
        raise UsageError(what, "name a file that ends in .svg")
    config = load_config(args.arch, args.data, args.config, train.overrides(args))

    from flowers_torch.files.atomic import write_text
    from flowers_torch.log import console
    from flowers_torch.report.charts import standalone, sweep_chart
    from flowers_torch.runs.lr_find import find_learning_rate, stage_number

    number = stage_number(config, args.stage)
    stage = config.stages[number]
    with console(args.quiet):
        set_allocator(config)
        sweep = find_learning_rate(config, number, args.lowest, args.highest, args.steps)
    print(f"rate     {sweep.suggestion:g}: {sweep.reason}; now {stage.lr:g}")
    if args.plot:
        write_text(expand_home(args.plot), standalone(sweep_chart(sweep.rates, sweep.losses, sweep.suggestion)))
        print(f"plot     {printable(args.plot)}")
    sweep_flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_sweep(sweep_flags)
    others = sweep_flags.parse_known_args(args.command[2:])[1]
    rate = ("--set", f"stages.{stage.name}.lr={sweep.suggestion:g}")
    print(f"next     {command_line('flowers-torch', 'train', *others, *rate)}")
