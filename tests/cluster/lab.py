"""The SLURM that the tests of this folder run on."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.hold import Hold

SCRIPT = Path(__file__).with_name("slurm_lab.sh")
ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PATIENCE_SECONDS = 600.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` returns once that is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE_SECONDS:.0f} s for {what}")


@dataclass(frozen=True)
class Task:
    """A process that SLURM started for a job of ours."""

    process: int
    job: str
    rank: int
    node: str


def processes() -> Iterator[tuple[int, list[str], dict[str, str], str]]:
    """Number, command line, environment and host-name namespace of every process there is."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # ended in the meantime
                command = (entry / "cmdline").read_text().split("\0")
                words = (entry / "environ").read_text(errors="replace").split("\0")
                environment = dict(word.split("=", 1) for word in words if "=" in word)
                yield int(entry.name), command, environment, os.readlink(entry / "ns/uts")


class Lab:
    """A running SLURM: three nodes, partitions `main` and `low`, whose jobs give way to those of `main`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{SYSTEM_PATH}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    def sweep(self, folder: Path, *overrides: str, hold: Hold | None = None) -> subprocess.Popen[str]:
        """A sweep of the forecaster, on its way. Models are in `folder`/models, runs in `folder`/sweep/0, 1, ..."""
        held = {"PYTHONPATH": f"{ROOT}:{hold.path}"} if hold else {}
        command = [sys.executable, "train.py", "-m", "hydra/launcher=slurm", "stage=cnn_lstm", "trainer=smoke"]
        command += [f"paths.models={folder / 'models'}", f"hydra.sweep.dir={folder / 'sweep'}", *overrides]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment | held,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def jobs(self) -> list[dict[str, str]]:
        """What `scontrol show job` knows of every job, the ended ones too."""
        lines = self.call("scontrol", "--oneliner", "show", "job").splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def tasks(self, sweep: Path) -> list[Task]:
        """What trains for a sweep at this moment, by rank."""
        found = [
            Task(number, environment["SLURM_JOB_ID"], int(environment["SLURM_PROCID"]), environment["SLURMD_NODENAME"])
            for number, command, environment, _ in processes()
            if "submitit.core._submit" in command and any(word.startswith(str(sweep)) for word in command)
            if "SLURM_PROCID" in environment and "srun" not in command[0]
        ]
        return sorted(found, key=lambda task: task.rank)

    def lose(self, node: str) -> None:
        """Kill a node: its daemon first, then everything else that runs on it."""
        daemon = int((self.folder / f"pid/slurmd-{node}").read_text())
        own = os.readlink(f"/proc/{daemon}/ns/uts")
        assert own != os.readlink("/proc/self/ns/uts")
        os.kill(daemon, signal.SIGKILL)
        for number, _, _, namespace in processes():
            if namespace == own:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def missing() -> str:
    """Why no SLURM can be started here; empty where one can."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "unshare") if not shutil.which(name, path=SYSTEM_PATH)]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "a SLURM of its own needs root"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode != 0:
        return "no namespaces may be made here"
    return ""
