"""Stop or disturb a process at one of its file-system calls, counted from 1."""

import builtins
import contextlib
import itertools
import os
import signal
from pathlib import Path

CHANGES = ("open a file", "link", "unlink", "remove", "rename", "replace", "mkdir", "rmdir", "fchmod", "fsync")
CALLS = (*CHANGES, "open", "listdir", "stat", "lstat", "scandir")


@contextlib.contextmanager
def watched(root, disturb, names=CALLS):
    """Call ``disturb(number, name, call)`` in place of each file-system call under ``root`` that has one of the
    ``names``; ``call`` makes it.

    Calls on a descriptor or a relative name count too: they belong to a file that was opened before.
    """
    numbers = itertools.count(1)
    prefix = str(root)

    def wrapped(name, real):
        def call(*arguments, **options):
            first = arguments[0] if arguments else "."
            outside = not isinstance(first, int) and Path(os.fsdecode(first)).is_absolute()
            if outside and not os.fsdecode(first).startswith(prefix):
                return real(*arguments, **options)
            return disturb(next(numbers), name, lambda: real(*arguments, **options))

        return call

    owners = {name: (builtins, "open") if name == "open a file" else (os, name) for name in names}
    real = {name: getattr(*place) for name, place in owners.items()}
    try:
        for name, place in owners.items():
            setattr(*place, wrapped(name, real[name]))
        yield
    finally:
        for name, place in owners.items():
            setattr(*place, real[name])


def kill_at(at):
    """The process is gone before its call number ``at``: what was not handed to the system is lost."""

    def disturb(number, name, call):
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call()

    return disturb


def fail_at(at, code, failed):
    """The call number ``at`` fails; its name is appended to ``failed``."""

    def disturb(number, name, call):
        if number == at:
            failed.append(name)
            raise OSError(code, os.strerror(code))
        return call()

    return disturb


def lose_replies(names):
    """Calls of these names succeed, and the caller hears of a failure, as over a network that drops the answer."""

    def disturb(number, name, call):
        result = call()
        if name in names:
            raise FileExistsError(17, "File exists")
        return result

    return disturb
