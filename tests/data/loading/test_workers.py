"""Workers that die, hang or find no shared memory end the pass with an error that names the fix."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowers_torch.data.loading import workers
from flowers_torch.data.loading.loaders import TransformedImages, make_loader
from flowers_torch.data.loading.workers import worker_errors
from flowers_torch.errors import DataError, ResourceError


def dataset(folder: Path, do: Callable[[], Any], number: int = 6) -> TransformedImages:
    """Images; the worker that reads the last one calls `do`."""
    paths = [folder / f"{n}.png" for n in range(number)]
    for n, path in enumerate(paths):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(path)

    def transform(image: Image.Image) -> torch.Tensor:
        if image.getpixel((0, 0))[0] == number - 1:  # type: ignore[index]
            do()
        return torch.zeros(3, 8, 8)

    return TransformedImages(paths, [0] * number, transform, seed=0)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    time.sleep(0.5)  # until the batch before is handed over; another test is about a stop during that
    os.kill(os.getpid(), signal.SIGSTOP)


def without_memory() -> None:
    raise RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")


@pytest.mark.needs("signals")
@pytest.mark.parametrize(
    ("do", "message"),
    [
        (killed, "a process that reads photos died.*--workers 0"),
        (stopped, r"the workers have read no photo for 1 s; the last ones they began: .*5\.png.*--workers 0"),
        (without_memory, "/dev/shm.*--workers 0"),
    ],
)
def test_the_end_of_a_worker_is_explained(
    do: Callable[[], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "STALL_POLLS", 1)
    loader, _ = make_loader(dataset(tmp_path, do), 2, shuffle=False, workers=2)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=message):
        list(loader)
    assert time.monotonic() - started < 10


# Torch raises the death of a worker in whatever runs at that moment, which may be a finalizer.
ANYWHERE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.needs("signals")
@ANYWHERE
def test_a_worker_that_stops_while_it_hands_over_a_batch_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch requests the memory of a batch from the worker, and waits without end for the response."""
    monkeypatch.setattr(workers, "STALL_POLLS", 1)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.2)
    loader, _ = make_loader(dataset(tmp_path, lambda: None), 2, shuffle=False, workers=1)
    real = resource_sharer.DupFd.detach

    def detach(self: resource_sharer.DupFd) -> int:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGSTOP)  # type: ignore[arg-type]
        return real(self)

    monkeypatch.setattr(resource_sharer.DupFd, "detach", detach)
    with pytest.raises(ResourceError, match="the workers have read no photo for .*--workers 0"):
        list(loader)


@pytest.mark.needs("signals")
@ANYWHERE
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends, which the standard library reports as an end of file."""
    loader, _ = make_loader(dataset(tmp_path, lambda: None), 2, shuffle=False, workers=1)
    real = resource_sharer.DupFd.detach

    def detach(self: resource_sharer.DupFd) -> int:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        return real(self)

    monkeypatch.setattr(resource_sharer.DupFd, "detach", detach)
    with pytest.raises(ResourceError, match="a process that reads photos died.*--workers 0"):
        list(loader)


def test_slow_workers_are_not_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take longer than the limit as long as workers begin new images."""
    monkeypatch.setattr(workers, "STALL_POLLS", 10)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.1)
    photos = dataset(tmp_path, lambda: None)
    real = photos.transform
    photos.transform = lambda image: (time.sleep(0.25), real(image))[1]
    loader, _ = make_loader(photos, 6, shuffle=False, workers=1)
    assert [len(batch[1]) for batch in loader] == [6]


@pytest.mark.parametrize("count", [0, 1])
def test_a_broken_image_is_named_with_and_without_workers(count: int, tmp_path: Path) -> None:
    photos = dataset(tmp_path, lambda: None)
    photos.paths[3].write_bytes(b"\x89PNG\r\n\x1a\n broken")
    loader, _ = make_loader(photos, 2, shuffle=False, workers=count)
    with pytest.raises(DataError, match=r"^[^\n]*3\.png[^\n]*; fix: [^\n]*$"):
        list(loader)


def test_the_death_of_a_worker_is_explained_wherever_it_is_raised() -> None:
    with pytest.raises(ResourceError, match="died"), worker_errors():
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")
    with pytest.raises(ResourceError, match="/dev/shm"), worker_errors():
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. It is out of shared memory")
    with pytest.raises(RuntimeError, match="^other$"), worker_errors():
        raise RuntimeError("other")
