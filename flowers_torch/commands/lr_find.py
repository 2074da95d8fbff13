"""`flowers-torch lr-find`: which learning rate a stage can take, from a sweep over growing rates."""

import argparse
import os
from pathlib import Path

from flowers_torch.commands import train
from flowers_torch.errors import UsageError, printable

EXAMPLES = """examples:
  flowers-torch lr-find --arch tf_efficientnet_lite0 --weights offline --data my_photos/
  flowers-torch lr-find --data my_photos/ --stage 1 --plot head.svg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of training and those of the sweep."""
    train.add_arguments(parser)
    parser.description = "Train a few steps at growing learning rates and say which rate to try."
    parser.epilog = EXAMPLES
    parser.add_argument("--stage", type=int, default=0, metavar="N", help="1, 2, ... (the last)")
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
    from flowers_torch.config import load_config

    config = load_config(args.arch, args.data, args.config, train.overrides(args))
    number = args.stage or len(config.stages)
    if not 1 <= number <= len(config.stages):
        raise UsageError(f"--stage {number}: there are {len(config.stages)}", "leave it out for the last")

    from flowers_torch.files import write_text
    from flowers_torch.prepare import prepare
    from flowers_torch.report.charts import standalone, sweep_chart
    from flowers_torch.stage import begin_stage, fast_network
    from flowers_torch.training.lr_find import lr_find
    from flowers_torch.training.monitors import console, log

    with console():
        run = prepare(config)
        stage = config.stages[number - 1]
        training, batches = begin_stage(run, stage, number - 1)
        training.called = fast_network(run, run.model)
        sweep = lr_find(training, batches, args.lowest, args.highest, args.steps)
        log.info(f"rate     {sweep.suggestion:g}: {sweep.reason}; now {stage.lr:g}")
        if args.plot:
            chart = sweep_chart(sweep.rates, sweep.losses, sweep.suggestion)
            write_text(Path(args.plot).expanduser(), standalone(chart))
            log.info(f"plot     {printable(args.plot)}")
        log.info(f"next     flowers-torch train ... --set stages.{number - 1}.lr={sweep.suggestion:g}")
    return 0
