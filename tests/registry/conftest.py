import functools
import os
import signal
import traceback

import numpy as np
import pytest
import torch

from trade_agent import safe_io
from trade_agent.training.model_registry import DataInfo, ModelRegistry, Objective, PreprocessorInfo


def draft(**changes):
    """Arguments of one registration; the weights follow ``seed``."""
    seed = changes.get("seed", 0)
    generator = torch.Generator().manual_seed(seed)
    arguments = {
        "model_type": "sac",
        "state": {"policy": {"weight": torch.randn(3, 2, generator=generator)}, "step": seed},
        "preprocessor": safe_io.dump_arrays({"schema": 1, "steps": [{"name": "scale", "mean": np.arange(3.0)}]}),
        "config": {"model": {"name": "sac", "gamma": 0.99}, "seed": seed},
        "grade": "B",
        "grade_decision": {"policy_id": "default", "inputs": {"sharpe": 0.42}},
        "metric_token": ("sharpe", 0.42),
        "objective": Objective(name="sharpe", value=0.5, direction="max"),
        "metrics": {"sharpe": 0.42, "max_drawdown": -0.1},
        "baselines": {"buy_and_hold": {"sharpe": 0.3}},
        "parents": [],
        "preprocessor_info": PreprocessorInfo(version="1.0.0", content_hash="p" * 64, contract_hash="c" * 64),
        "data": DataInfo(
            fingerprint="d" * 64,
            symbols=["BTC"],
            source="sample",
            splits={"train": ["2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"]},
        ),
        "contract": {"features": ["return"], "window_bars": 16},
        "recipe": {"gamma": 0.99},
        "seed": seed,
        "run_id": f"run-of-seed-{seed}",
        "trainer_profile": "smoke",
        "environment": {"python": "3.11"},
    }
    return arguments | changes


@pytest.fixture
def make_draft():
    return draft


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(tmp_path / "models", durability="relaxed")


@pytest.fixture
def fork():
    """Run a function in a process of its own; what it yields arrives as text lines in ``process.lines()``.

    A forked process has torch already, so that a test with many processes is quick.
    """
    processes = []

    def start(function, *arguments, **named):
        process = _Forked(functools.partial(function, **named), arguments)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


class _Forked:
    def __init__(self, function, arguments):
        self._output, end = os.pipe()
        self.pid = os.fork()
        self.status = None
        if self.pid == 0:
            os.close(self._output)
            code = 1
            try:
                for line in function(*arguments):
                    os.write(end, f"{line}\n".encode())  # one write: a line is there wholly or not at all
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)  # nothing of pytest runs in the child
        os.close(end)
        self._lines = os.fdopen(self._output)

    def read(self, count):
        """Wait for the next lines."""
        return [self._lines.readline().strip() for _ in range(count)]

    def finished(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def result(self):
        """Wait for the end; the remaining lines and the exit status (negative: the signal)."""
        lines = self._lines.read().split("\n")[:-1]
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return lines, self.status

    def kill(self):
        if not self.finished():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._lines.close()
