"""Signals that ask a run to stop: noticed at once, obeyed at the next boundary between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from trade_agent.errors import StoppedError

# The exit code says who is to go on: 75 (EX_TEMPFAIL) asks a batch system to put the job back into its queue.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}


class StopFlag:
    """Set by the first signal. `resume` is the command that goes on, for the message.

    A second SIGINT does not wait for the boundary: a person who asks twice means it. SIGTERM often comes twice, from
    the batch system and from the launcher, and means the same as once.
    """

    def __init__(self, resume: str) -> None:
        self.resume = resume
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def raise_stopped(self) -> None:
        """Raises StoppedError where a signal came, here or to another process that trains along."""
        number = self.signal or signal.SIGTERM
        error = StoppedError(f"stopped by {number.name}", f"go on with: {self.resume}")
        error.exit_code = EXIT_CODES[number]
        raise error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:
            self.raise_stopped()


@contextlib.contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGUSR1 set the flag, and put the handlers before them back at the end.

    Only the main thread may set handlers; elsewhere signals stay what they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, flag._handle) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
