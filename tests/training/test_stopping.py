"""The first signal is recorded, the second one acts, and the handlers are restored."""

import os
import signal
import threading

import pytest

from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed
from flowers_torch.training.stopping import stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_recorded_and_the_second_acts(number: signal.Signals) -> None:
    received_numbers: list[int] = []
    before = signal.signal(number, lambda received, frame: received_numbers.append(received))
    try:
        with stop_request() as stop:
            assert not stop.number and not stop.signal_name
            os.kill(os.getpid(), number)
            assert stop.number == number and stop.signal_name == number.name and not received_numbers
            os.kill(os.getpid(), number)
            assert received_numbers == [number]
        os.kill(os.getpid(), number)
        assert received_numbers == [number, number]
    finally:
        signal.signal(number, before)


def test_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), stop_request():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_record_no_signal() -> None:
    recorded: list[int] = []

    def work() -> None:
        with stop_request() as stop:
            recorded.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert recorded == [0]


def test_the_deadline() -> None:
    with stop_request() as stop:
        assert not stop.time_is_up(SINGLE_PROCESS)
    with stop_request(seconds=-1) as stop:
        assert stop.time_is_up(SINGLE_PROCESS)


class Counting(Distributed):
    """One of two processes; the other one has seen SIGTERM, and its deadline has passed."""

    reductions = 0

    def all_reduce_max(self, value: float) -> float:
        type(self).reductions += 1
        return max(value, signal.SIGTERM)


def test_several_processes_agree_in_intervals() -> None:
    """On a GPU each agreement lets the hosts wait for each other, so it is rarer than the batches."""
    two = Counting(size=2)
    with stop_request(seconds=1000, interval=20) as stop:
        found = [(stop.agreed(two), stop.time_is_up(two)) for _ in range(45)]
    assert [place for place, (stops, _) in enumerate(found, start=1) if stops] == [20, 40]
    assert [is_over for _, is_over in found] == [False] * 19 + [True] * 26
    assert Counting.reductions == 3
    with stop_request(interval=20) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(SINGLE_PROCESS)


def test_a_signal_during_the_reduction_counts_at_the_next_call() -> None:
    """The other processes have not seen it in this reduction, so this one must not leave alone."""

    class Reducing(Distributed):
        def all_reduce_max(self, value: float) -> float:
            if not value:
                os.kill(os.getpid(), signal.SIGTERM)
            return value

    with stop_request() as request:
        assert not request.agreed(Reducing()) and request.number == signal.SIGTERM
        assert request.agreed(Reducing()) and request.number == signal.SIGTERM


def test_a_signal_of_another_process_stops_this_one() -> None:
    class Other(Distributed):
        def all_reduce_max(self, value: float) -> float:
            return max(value, signal.SIGINT)

    with stop_request() as request:
        assert request.agreed(Other()) and request.signal_name == "SIGINT"
