"""A block of code in which torch raises an error where the host would wait for the GPU."""

import contextlib
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """What is done once in a process, such as copying a network or a constant to the GPU, comes before the block."""
    torch.cuda.synchronize()
    try:
        _set_mode("error")
        yield
    finally:  # else all later tests of the process fail
        _set_mode("default")


def _set_mode(mode: str) -> None:
    with warnings.catch_warnings():  # torch warns in the first call that this mode is a prototype, and sets it
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
