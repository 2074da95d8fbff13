"""Micro-batching: waiting items share a batch, in order, and an error affects only its batch."""

import threading
from collections.abc import Sequence

import pytest

from flowers_torch.deploy.batching import Batcher
from flowers_torch.errors import ResourceError


class Network:
    """Doubles numbers once `go` is set, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.go.wait(10)
        if -1 in items:
            raise ValueError("a bad one")
        return [2 * item for item in items]


def test_waiting_items_share_a_batch() -> None:
    network = Network()
    batcher = Batcher(network, max_batch=4)
    first = batcher.submit(1)
    assert network.begun.wait(10)
    rest = [batcher.submit(n) for n in range(2, 8)]
    network.go.set()
    assert [future.result(10) for future in (first, *rest)] == [2, 4, 6, 8, 10, 12, 14]
    assert network.batches == [[1], [2, 3, 4, 5], [6, 7]]
    batcher.close()


def test_a_batch_that_fails_costs_only_itself() -> None:
    network = Network()
    network.go.set()
    batcher = Batcher(network, max_batch=4)
    with pytest.raises(ValueError, match="a bad one"):
        batcher.submit(-1).result(10)
    assert batcher.alive and batcher.submit(5).result(10) == 10
    batcher.close()


def test_closing_computes_waiting_items_and_refuses_more() -> None:
    network = Network()
    batcher = Batcher(network, max_batch=1)
    futures = [batcher.submit(n) for n in range(3)]
    assert network.begun.wait(10)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    network.go.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == [0, 2, 4] and not batcher.alive
    with pytest.raises(ResourceError, match="stopping"):
        batcher.submit(1)


def test_canceled_items_are_left_out() -> None:
    network = Network()
    batcher = Batcher(network, max_batch=4)
    first = batcher.submit(1)
    assert network.begun.wait(10)
    canceled, other = batcher.submit(2), batcher.submit(3)
    assert canceled.cancel()
    network.go.set()
    assert (first.result(10), other.result(10)) == (2, 6) and network.batches == [[1], [3]]
    batcher.close()
