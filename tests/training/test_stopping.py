"""Signals are noted once, acted on the second time, and handed back."""

import os
import signal
import threading

import pytest

from flowers_torch.training.stopping import stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number: signal.Signals) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda received, frame: seen.append(received))
    try:
        with stop_request() as stop:
            assert not stop.number and not stop.signal_name
            os.kill(os.getpid(), number)
            assert stop.number == number and stop.signal_name == number.name and not seen
            os.kill(os.getpid(), number)
            assert seen == [number]
        os.kill(os.getpid(), number)
        assert seen == [number, number]
    finally:
        signal.signal(number, before)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), stop_request():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_cannot_and_need_not() -> None:
    noted: list[int] = []

    def work() -> None:
        with stop_request() as stop:
            noted.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [0]


def test_the_clock() -> None:
    with stop_request() as stop:
        assert not stop.time_is_up()
    with stop_request(seconds=-1) as stop:
        assert stop.time_is_up()
