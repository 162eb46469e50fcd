"""Locks between processes, of the operating system: they end with the process that held them, however it ends.

A lock is a regular file, which stays in place. The lock of a folder would hold on one host only where that is on NFS.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

RUN = "lock"  # in the folder of a run: who holds it works there


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock `path`, making it and its folder. Programs that are started meanwhile do not inherit it.

    wait: for who holds it. Raises BlockingIOError where somebody does and is not to be waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def held(path: Path) -> bool:
    """Whether a process holds the lock `path`."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
