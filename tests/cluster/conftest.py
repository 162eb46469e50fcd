"""A SLURM, or two hosts, for every test of this folder: skipped with a reason where they cannot be had."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster import hosts as two_hosts
from tests.cluster.lab import SCRIPT, Lab, missing


def not_here(reason: str) -> NoReturn:
    """A failure where `make cluster-test` asked for these tests and nothing else."""
    if os.environ.get("CLUSTER_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason:
        not_here(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))  # short: Unix sockets lie in it
    try:
        with open(folder / "start.log", "w") as log:  # no pipe: the daemons would hold it open
            started = subprocess.run([SCRIPT, "start", folder], stdout=log, stderr=log, timeout=600)
        if started.returncode != 0:
            not_here(f"no SLURM can be started here: {(folder / 'start.log').read_text()[-2000:]}")
        yield Lab(folder)
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=300)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hosts() -> Iterator[two_hosts.Hosts]:
    hosts = two_hosts.Hosts()
    try:
        reason = hosts.connect()
        if reason:
            not_here(reason)
        yield hosts
    finally:
        hosts.remove()
