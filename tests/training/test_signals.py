"""A batch system's own signal is handed on once the run has stopped."""

import os
import signal
from collections.abc import Iterator

import pytest

from trade_agent.training import signals
from trade_agent.training.signals import StopFlag, stop_on_signals


@pytest.fixture
def told() -> Iterator[list[int]]:
    """What a handler that was there before us was told."""
    numbers: list[int] = []

    def handler(number: int, frame: object) -> None:
        numbers.append(number)
        raise SystemExit(7)

    before = signal.signal(signal.SIGUSR2, handler)
    yield numbers
    signal.signal(signal.SIGUSR2, before)


def ask_to_stop(flag: StopFlag) -> None:
    with stop_on_signals(flag):
        os.kill(os.getpid(), signal.SIGUSR2)
        while not flag.requested:
            signal.pause()
        flag.raise_stopped()  # a checkpoint was written


def never_reach_a_boundary(flag: StopFlag) -> None:
    with stop_on_signals(flag):
        os.kill(os.getpid(), signal.SIGUSR2)
        while True:
            signal.pause()


def test_who_waits_for_the_signal_is_told_behind_the_boundary(told: list[int]) -> None:
    with pytest.raises(SystemExit, match="7"):
        ask_to_stop(StopFlag(""))
    assert told == [signal.SIGUSR2]


def test_a_boundary_that_does_not_come_is_not_waited_for(told: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE_SECONDS", 1)
    with pytest.raises(SystemExit, match="7"):
        never_reach_a_boundary(StopFlag(""))
    assert told == [signal.SIGUSR2]


def test_a_run_that_ends_by_itself_tells_nobody(told: list[int]) -> None:
    with stop_on_signals(StopFlag("")):
        os.kill(os.getpid(), signal.SIGUSR2)
    assert told == []
    assert signal.alarm(0) == 0


def test_where_nobody_waits_the_signal_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with stop_on_signals(StopFlag("")):
        assert signal.getsignal(signal.SIGUSR2) is before
