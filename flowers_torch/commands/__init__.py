"""The commands of `flowers-torch`, one file each: `add_arguments(parser)` and `run(args)`, which returns an
exit code or None for 0. In --help stand the docstring of the file and its EXAMPLES, if there are any.

Arguments that several commands take are defined here, so they have one name, one meaning and one help text.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.config import Config
from flowers_torch.config_file import load_config
from flowers_torch.errors import UsageError, printable

if TYPE_CHECKING:
    from flowers_torch.training.device import Runtime

RUN_HELP = "run folder, weights file, name below runs/, or latest"


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds --data for a command that opens a run."""
    text = "where the photos of the run are now, if they have moved"
    parser.add_argument("--data", dest="moved", default="", metavar="DATA", help=text)


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Adds --classes for a command that reads photos of its own."""
    text = "what names the classes of DATA: top, leaf, path or name [what leaves no doubt]"
    choices = ("", "top", "leaf", "path", "name")
    parser.add_argument("--classes", default="", choices=choices, metavar="NAME", help=text)


def add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_device(parser: argparse.ArgumentParser, batch_size: bool = True, precision: bool = False) -> None:
    """Adds the flags of computing with a trained network."""
    if batch_size:
        parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="photos per batch [32]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    if precision:
        parser.add_argument("--precision", default="fp32", metavar="NAME", help="auto, fp32, bf16 or fp16 [fp32]")


def add_arch(parser: argparse.ArgumentParser) -> None:
    """Adds a network, its input size and --keras."""
    parser.add_argument("arch", metavar="ARCH", help="a registered network or any timm name")
    parser.add_argument("--size", type=int, default=0, metavar="N", help="input side in pixels [the network's own]")
    parser.add_argument("--keras", action="store_true", help="layers, names and order of Keras")


def add_max_error(parser: argparse.ArgumentParser) -> None:
    text = "largest error rate of the predictions, such as 2%%; the rest is unsure"
    parser.add_argument("--max-error", metavar="P", help=text)


def add_coverage(parser: argparse.ArgumentParser) -> None:
    text = "also print the classes that contain the true one in that many cases, such as 95%%"
    parser.add_argument("--coverage", metavar="P", help=text)


def check_positive(args: argparse.Namespace, *flags: str) -> None:
    """Raises UsageError if one of these flags is below 1."""
    for flag in flags:
        value = getattr(args, flag.replace("-", "_"))
        if value < 1:
            raise UsageError(f"--{flag} {value} is not valid: expected 1 or more", f"give a positive --{flag}")


def fraction(text: str, flag: str = "--max-error", example: str = "2%") -> float:
    """The value of a flag as a fraction: 0.02 from 2% or 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"{flag} {printable(text, 40)} is not a valid fraction", f"give a value such as {example}")
    return value


def warn(text: str) -> None:
    print(f"flowers-torch: {text}", file=sys.stderr)


def print_json(value: Any) -> None:
    from flowers_torch.files.atomic import to_json

    print(to_json(value, indent=1))


def set_allocator(config: Config) -> None:
    """Applies `accelerate` to the memory allocator of this process, before a command trains."""
    from flowers_torch.accelerate import Acceleration
    from flowers_torch.training.device import choose_runtime

    # For a precision of its own choice it would ask the first GPU, in each of several processes.
    runtime = choose_runtime(config.device, "fp32", config.threads)
    Acceleration.parse(config.accelerate).set_allocator(runtime)


def keep_memory(runtime: "Runtime") -> None:
    """The same before a command predicts: a CPU then takes two thirds of the time."""
    from flowers_torch.accelerate import AUTO

    AUTO.set_allocator(runtime)


def set_allocator_of_run(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """The same for a run that a command continues; a folder without a run is an error later."""
    if (folder / "config.toml").is_file():
        set_allocator(load_config(file=str(folder / "config.toml"), overrides=changes))
