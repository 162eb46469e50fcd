"""Signals that come while a program is not training yet: real processes, sent a real signal at a known place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trade_agent.training.signals import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
# Sends this process a signal when it is about to import a module.
KILLED_AT_AN_IMPORT = """
import os, runpy, sys

number, name, program = int(sys.argv[1]), sys.argv[2], sys.argv[3]

class AtImport:
    def find_spec(self, fullname, path=None, target=None):
        if fullname == name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, AtImport())
sys.argv = sys.argv[3:]
runpy.run_path(program, run_name="__main__")
"""


def killed(folder: Path, number: int, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", KILLED_AT_AN_IMPORT, str(number), name, *command]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_during_the_first_imports_ends_with_its_code_and_one_line(
    tmp_path: Path, number: signal.Signals
) -> None:
    ended = killed(tmp_path, number, "hydra", str(ROOT / "train.py"), "stage=cnn_lstm")
    assert ended.returncode == EXIT_CODES[number]
    assert ended.stderr == f"stopped by {number.name} while nothing was trained; give the same command again\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_before_a_run_is_begun_leaves_no_folder_of_it(tmp_path: Path, number: signal.Signals) -> None:
    """torch is imported inside of Hydra's job, whose folder is there by then."""
    ended = killed(tmp_path, number, "torch", str(ROOT / "train.py"), "stage=cnn_lstm", "hydra.run.dir=runs/one")
    assert ended.returncode == EXIT_CODES[number]
    assert ended.stderr == f"stopped by {number.name} while nothing was trained; give the same command again\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_other_program_ends_alike(tmp_path: Path) -> None:
    script = tmp_path / "trade-agent"
    script.write_text("from trade_agent.cli import main\n\nmain()\n", encoding="utf-8")
    ended = killed(tmp_path, signal.SIGUSR1, "torch", str(script), "train", "cnn-lstm")
    assert ended.returncode == 75
    assert ended.stderr == "stopped by SIGUSR1 while nothing was trained; give the same command again\n"
    assert list(tmp_path.iterdir()) == [script]
