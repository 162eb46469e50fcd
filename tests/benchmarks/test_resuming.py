"""The two long programs are stopped and started at will: what is finished is kept, what is not is run or told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = """
import sys
from benchmarks import reference as program

results, *overrides = sys.argv[1:]
small = ("env.evaluation_episodes=2", "env.check_episodes=1", "model.hidden_sizes=[8]", "monitoring=off")
program.UNITS = (
    program.Unit(
        task="Pendulum-v1", algorithm="td3", published=-1500.0, env_steps=240, required=True,
        overrides=(*small, *overrides),
    ),
)
sys.argv[1:] = ["--seeds", "1", "--results", results]
program.main()
"""
LEARNING = """
import sys
from dataclasses import replace
from benchmarks.learning import __main__ as program

results, *overrides = sys.argv[1:]
noise = program.TASKS["noise"]
small = ("data.num_bars=3000", "evaluation.train_fraction=0.5", "model.hidden_sizes=[8]")
program.TASKS["noise"] = replace(noise, env_steps=4096, seeds=None, overrides=(*noise.overrides, *small, *overrides))
sys.argv[1:] = ["--only", "noise", "--seeds", "1", "--results", results]
program.main()
"""


def run(program: str, results: Path, *overrides: str) -> tuple[list[dict], str]:
    """Lines that were printed, and what was told of the units that ran."""
    command = [sys.executable, "-c", program, str(results), *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=results, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "name", "value"),
    [(REFERENCE, "Pendulum-v1/td3_1.json", "mean_return"), (LEARNING, "noise/ppo_1.json", "sharpe")],
    ids=["reference", "learning"],
)
def test_a_unit_runs_once_and_again_when_its_settings_change(
    program: str, name: str, value: str, tmp_path: Path
) -> None:
    kept = tmp_path / name
    lines, told = run(program, tmp_path)
    assert "[1/1]" in told
    assert "finished" in told
    first = json.loads(kept.read_text())
    assert all(line["finished"] and line["met"] is not None for line in lines)

    marked = first | {value: -123.0}  # a number that no run gives
    kept.write_text(json.dumps(marked))
    lines, told = run(program, tmp_path)
    assert "[1/1]" not in told
    assert json.loads(kept.read_text()) == marked
    assert all(line["finished"] for line in lines)

    _, told = run(program, tmp_path, "model.gamma=0.7")
    again = json.loads(kept.read_text())
    assert "finished" in told
    assert again["settings"] != first["settings"]
    assert again[value] != -123.0

    lines, told = run(program, tmp_path, "model.gama=0.7")
    assert "[1/1]" in told
    assert "failed: there is no option model.gama" in told
    assert json.loads(kept.read_text()) == again
    assert [(line["finished"], line["missing"], line["met"]) for line in lines] == [(False, 1, None)]
