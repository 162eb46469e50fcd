"""Signals that ask a run to stop: noticed at once, obeyed at the next boundary between two steps."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from trade_agent.errors import StoppedError

# The exit code says who is to go on: 75 asks a batch system to put the job back into its queue.
EX_TEMPFAIL = 75
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: EX_TEMPFAIL}
PR_SET_PDEATHSIG = 1
PARENT = "TRADE_AGENT_PARENT"  # environment variable of a worker: process id of who started it
HANDED_ON = signal.SIGUSR2  # by submitit, to put the job back into the queue before its time is over
GRACE_SECONDS = 20  # until the next boundary; then it is handed on without a checkpoint of its own
STDERR = 2


class StopFlag:
    """Set by the first signal. `resume` is the command that goes on, for the message.

    A second SIGINT does not wait for the boundary: a person who asks twice means it. SIGTERM often comes twice, from
    the batch system and from the launcher, and means the same as once.
    """

    def __init__(self, resume: str) -> None:
        self.resume = resume
        self.signal: signal.Signals | None = None

    @property
    def number(self) -> int:
        """Of the signal; 0 where none came."""
        return int(self.signal or 0)

    @property
    def requested(self) -> bool:
        return self.number > 0

    def raise_stopped(self, number: int | None = None) -> None:
        """Raises StoppedError for the signal that came. number: the one that came to any process that trains along."""
        self.signal = signal.Signals(number or self.signal or signal.SIGTERM)
        error = StoppedError(f"stopped by {self.signal.name}", f"go on with: {self.resume}")
        error.exit_code = EXIT_CODES.get(self.signal, EX_TEMPFAIL)
        raise error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            if number == HANDED_ON:
                signal.alarm(GRACE_SECONDS)
        elif number == signal.SIGINT:
            self.raise_stopped()


def end_on_signals() -> None:
    """Called first of all by a program: outside of a run (`stop_on_signals`) the same signals end it at once, with the
    same exit codes and one line. A worker of torchrun dies of them instead: its agent must not take it for a run that
    was stopped."""
    if "RANK" in os.environ:
        stop_with_parent()
    else:
        for number in EXIT_CODES:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # Not by print: the signal may have come in the midst of one.
    line = f"stopped by {signal.Signals(number).name} while nothing was trained; give the same command again\n"
    os.write(STDERR, line.encode())
    raise SystemExit(EXIT_CODES[signal.Signals(number)])


def stop_with_parent() -> None:
    """Have the system send SIGTERM when the process that started this one dies, even by SIGKILL (Linux; prctl(2)).

    A worker that trained on alone would keep the folder from who goes on with the run. What `device.processes` starts
    knows its parent, which may be dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)


def has_starter() -> bool:
    """Whether `device.processes` started this process, and who did lives."""
    return os.environ.get(PARENT) == str(os.getppid())


@contextlib.contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGUSR1 set the flag, and put the handlers before them back at the end.

    SIGUSR2 too where somebody waits for it, who is told once the run has stopped. Only the main thread may set
    handlers; elsewhere signals stay what they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    theirs = signal.getsignal(HANDED_ON)
    numbers = [*EXIT_CODES]
    before = {}
    if callable(theirs):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda number, frame: theirs(HANDED_ON, frame))
        numbers.append(HANDED_ON)
    before |= {number: signal.signal(number, flag._handle) for number in numbers}
    try:
        yield
    except StoppedError:
        signal.alarm(0)
        if flag.signal == HANDED_ON and callable(theirs):
            theirs(HANDED_ON, None)  # ends the process that puts the job back
            time.sleep(GRACE_SECONDS)  # another one of the job: its end must not end the job before that
        raise
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
