"""A peer: another project in a virtual environment of its own, asked by JSON lines over a pipe."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.speed.measure import Figure

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / "benchmarks" / ".venvs"
TORCH = "torch==2.13.0"
PACKAGES = {
    "gym_anytrading": ["gym-anytrading==2.0.0", "numpy<3"],
    "stable_baselines3": [TORCH, "stable-baselines3==2.9.0"],
    "neuralforecast": [TORCH, "neuralforecast==3.3.0"],
}


class PeerMissingError(Exception):
    """A peer cannot be installed here."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is built the first time. Raises PeerMissingError."""
    folder = VENVS / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"building {folder}", file=sys.stderr)
        try:
            venv.create(folder, with_pip=True)
        except subprocess.CalledProcessError as error:  # what Python without ensurepip comes to, as Debian's is
            raise PeerMissingError(f"{sys.executable} makes no virtual environment with pip: {error}") from error
        # The index of CPU builds, where it can be reached, spares gigabytes of CUDA.
        index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"] if TORCH in PACKAGES[name] else []
        command = [str(python), "-m", "pip", "install", "--quiet", *index, *PACKAGES[name]]
        pip = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if pip.returncode:
            print(pip.stderr, file=sys.stderr)
            errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {pip.returncode}"
            raise PeerMissingError(f"{' and '.join(PACKAGES[name])} cannot be installed: {reason}")
        ready.touch()
    return python


@contextmanager
def reported_if_missing(figure: str, peer_name: str) -> Iterator[None]:
    """Without its peer a figure is not measured: a line says so and why, and the program goes on behind the block."""
    try:
        yield
    except PeerMissingError as error:
        Figure(figure=figure, unit="not measured", ours=None, peer_name=peer_name, remark=str(error)).print()


class Peer:
    """A running ``benchmarks.speed.peers.NAME``; ``ask(what, **arguments)`` returns what its function returns."""

    def __init__(self, name: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [python_of(name), "-m", f"benchmarks.speed.peers.{name}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer ended with status {self._process.wait()} while it was asked to {what}")
        return json.loads(answer)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
