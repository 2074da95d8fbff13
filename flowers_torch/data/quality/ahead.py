"""Inspection of a dataset while this process imports torch, by one that does not; the cache has its results."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from flowers_torch.errors import FlowersError
from flowers_torch.files.system import child_environment, expand_home, processes_here, usable_cores

MAX_WAIT = 5.0  # seconds

_running: list["subprocess.Popen[bytes]"] = []


@contextlib.contextmanager
def inspection_ahead(source: str, classes: str = "", groups: str = "", test: str = "") -> Iterator[None]:
    """Inspects the images of a source beside what is done inside; `wait_for_inspection` waits until they are.

    Errors are left to whoever opens the source next. Nothing is inspected of a source that is not on the disk, where
    torch is there already or only one core, and by several processes. The arguments are those of `open_dataset`.
    """
    try:
        if _pays(source):
            with contextlib.suppress(OSError):
                _running.append(_start([source, classes, groups, test]))
        yield
    finally:
        for process in _running:
            process.kill()
            process.wait()
        _running.clear()


def wait_for_inspection() -> None:
    """Returns when the inspection that was begun has ended, or after a while ends it.

    Many images are left to this process, which shows its progress; the cache has the blocks that are done.
    """
    for process in _running:
        try:
            process.wait(MAX_WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pays(source: str) -> bool:
    if "torch" in sys.modules or usable_cores() == 1 or processes_here() > 1:
        return False
    try:
        return bool(source) and expand_home(source).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flowers_torch.data.quality.ahead", json.dumps(arguments)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=child_environment())


def main() -> None:
    """Inspects the images of the source that the argument names."""
    from flowers_torch.data.quality.scan import inspect_images
    from flowers_torch.data.sources.open import open_dataset

    source, classes, groups, test = json.loads(sys.argv[1])
    with contextlib.suppress(FlowersError):
        inspect_images(open_dataset(source, classes=classes, groups=groups, test=test))


if __name__ == "__main__":
    main()
