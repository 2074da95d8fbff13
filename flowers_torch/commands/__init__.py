"""The verbs of the `flowers-torch` command, one file each: `add_arguments(parser)` and `run(args)`."""

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
