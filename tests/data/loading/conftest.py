"""The three ways in which Python starts a process: Linux forks up to 3.13, macOS and Windows spawn.

A forkserver starts processes from pickles as spawning does, and does not import torch for each of them.
"""

import multiprocessing
from collections.abc import Iterator

import pytest


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    multiprocessing.set_forkserver_preload(["flowers_torch.data.loading.loaders"])
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)
