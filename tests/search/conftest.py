"""A database server for tests of searches that share one: skipped with a reason where it cannot be had."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian does not have on the PATH."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), shutil.which("initdb")]
    return Path(found[0]).parent if found[0] else None


@pytest.fixture
def postgresql() -> Iterator[str]:
    """Address of a PostgreSQL that is made for one test, reached by a socket in its folder."""
    pytest.importorskip("psycopg", reason="needs the extra postgresql")
    folder_of_programs = programs()
    if folder_of_programs is None:
        pytest.skip("not installed: postgresql")
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # for whom it does not run
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("there is no user postgres")
        owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short: a Unix socket lies in it

    def call(program: str, *arguments: str) -> bool:
        command = [folder_of_programs / program, "--pgdata", folder / "data", *arguments]
        with open(folder / "output", "ab") as output:  # no pipe: the server would hold it open
            return not subprocess.run(
                command, cwd=folder, stdout=output, stderr=output, timeout=600, **owner
            ).returncode

    try:
        if owner:
            shutil.chown(folder, "postgres", "postgres")
        made = call("initdb", "--username=optuna", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        if not (
            made
            and call("pg_ctl", "--wait", "--timeout=300", f"--options=-c listen_addresses= -k {folder} -F", "start")
        ):
            pytest.skip(f"no PostgreSQL can be started here: {(folder / 'output').read_text()[-1000:]}")
        yield f"postgresql+psycopg://optuna@/postgres?host={folder}"
    finally:
        call("pg_ctl", "--mode=immediate", "stop")  # also one that was too slow to start
        shutil.rmtree(folder, ignore_errors=True)
