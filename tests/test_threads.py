"""Work in several threads: order, errors, and torch's number of threads."""

from collections.abc import Iterator

import pytest
import torch

from flowers_torch.files.threads import cores_for_torch, map_in_threads


def test_results_come_in_order_and_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    results = map_in_threads(lambda item: item * item, items(), threads=2, ahead=2)
    assert next(results) == 0
    assert len(taken) == 4
    assert list(results) == [item * item for item in range(1, 20)]


def test_an_error_of_the_function_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda item: 1 // item, [2, 1, 0, 3], threads=2))


def test_torch_has_its_number_of_threads_again_afterwards() -> None:
    before = torch.get_num_threads()
    with cores_for_torch(2):
        assert torch.get_num_threads() == 2
        assert list(map_in_threads(lambda _: torch.get_num_threads(), range(3), threads=2)) == [1, 1, 1]
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
