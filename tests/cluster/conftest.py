"""A SLURM of its own for every test of this folder, skipped with a reason where none can be started."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import SCRIPT, Lab, missing


@pytest.fixture
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))  # short: Unix sockets lie in it
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, timeout=600)
        yield Lab(folder)
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=300)
        shutil.rmtree(folder, ignore_errors=True)
