"""`trade-agent search summary`, on a study made here."""

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

from trade_agent.cli import app
from trade_agent.search.studies import create_study, open_storage


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


@pytest.fixture
def summary(study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the command prints in a terminal of 80 columns in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["search", "summary", "sac", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


def test_the_table_fits_a_terminal_and_the_best_is_named(summary: Callable[..., str]) -> None:
    lines = summary().splitlines()
    rows = [line.split() for line in lines]
    assert ["0", "complete", "0.5", "0.0003"] in rows
    assert ["1", "complete", "1.25", "0.0003"] in rows
    assert ["2", "failed", "0.0003"] in rows
    assert lines[-2:] == [
        "study sac: 2 complete, 1 failed",
        "best trial 1: sharpe 1.25 in outputs/1: model.critic_learning_rate=0.0003",
    ]


def test_json_is_all_of_it_and_pictures_are_drawn(summary: Callable[..., str], tmp_path: Path) -> None:
    found = json.loads(summary("--json", "--pictures", "shown"))
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
