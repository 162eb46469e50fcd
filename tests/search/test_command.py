"""`trade-agent search summary`, on a study made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from trade_agent.search.studies import create_study, open_storage

COMMAND = [sys.executable, "-c", "from trade_agent.cli import main; main()", "search", "summary"]


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Two complete trials in the default storage of `tmp_path`, and a failed one."""
    storage = open_storage(f"journal:///{tmp_path}/outputs/studies.journal")
    made = create_study(storage, "sac", objectives={"sharpe": "maximize"}, sampler=None, pruner=None)
    for value in (0.5, 1.25, None):
        trial = made.ask()
        trial.suggest_categorical("model.critic_learning_rate", [0.0003])
        trial.set_user_attr("folder", str(tmp_path / f"outputs/{trial.number}"))
        made.tell(trial, value, state=None if value else optuna.trial.TrialState.FAIL)
    return made


def summary(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(
        [*COMMAND, "sac", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_table_fits_a_terminal_and_the_best_is_named(study: optuna.Study, tmp_path: Path) -> None:
    lines = summary(tmp_path).splitlines()
    rows = [line.split() for line in lines]
    assert ["0", "complete", "0.5", "0.0003"] in rows
    assert ["1", "complete", "1.25", "0.0003"] in rows
    assert ["2", "failed", "0.0003"] in rows
    assert lines[-2:] == [
        "study sac: 2 complete, 1 failed",
        "best trial 1: sharpe 1.25 in outputs/1: model.critic_learning_rate=0.0003",
    ]


def test_json_is_all_of_it_and_pictures_are_drawn(study: optuna.Study, tmp_path: Path) -> None:
    found = json.loads(summary(tmp_path, "--json", "--pictures", "shown"))
    assert found["best"] == [1]
    assert found["trials"][1] == {
        "number": 1,
        "state": "complete",
        "values": {"sharpe": 1.25},
        "params": {"model.critic_learning_rate": 0.0003},
        "folder": str(tmp_path / "outputs/1"),
        "violated": [],
    }
    assert json.loads((tmp_path / "shown/summary.json").read_text()) == found
    assert (tmp_path / "shown/history.png").is_file()
