"""The verbs of the `flowers-torch` command, one file each: `add_arguments(parser)` and `run(args)`."""

import argparse
import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """For the imports of a verb: no search for garbage, which would take a seventh of their time."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def add_data(parser: argparse.ArgumentParser, flag: str = "--data") -> None:
    """Adds the flag that says where the photos of a run are now."""
    text = "the place of the run's own photos, where they have moved"
    parser.add_argument(flag, dest="moved", default="", metavar="DATA", help=text)
