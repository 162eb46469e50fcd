"""Locks of files, against processes that hold them."""

import subprocess
import sys
from pathlib import Path

import pytest

from trade_agent.safe_io.locks import held, locked

HOLD = """
import pathlib, sys
from trade_agent.safe_io.locks import locked

with locked(pathlib.Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_a_file_that_stays_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "made/lock"
    assert not held(path)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert path.is_file()
        assert held(path)
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
        other.kill()
    assert path.is_file()
    assert not held(path)
    with locked(path, wait=True):
        assert held(path)
    assert not held(path)


def test_who_is_started_under_a_lock_does_not_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, wait=True):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        assert not held(path)
    finally:
        child.communicate(timeout=300)
