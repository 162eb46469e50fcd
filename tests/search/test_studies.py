"""Studies, and runs as their trials, against real storages."""

import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from trade_agent.errors import ConfigError, TrialPrunedError
from trade_agent.search.pruners import make_pruner
from trade_agent.search.studies import create_study, load_study, open_storage
from trade_agent.search.sweeps import FOLDER
from trade_agent.search.trial import StudyTrial

SHARPE = {"sharpe": "maximize"}
SPACE = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}


@pytest.fixture(params=["journal:///{}/a/studies.journal", "sqlite:///{}/a/studies.db"], ids=["journal", "sqlite"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


def make(address: str, name: str = "sac", objectives: dict[str, str] = SHARPE) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=1)
    return create_study(
        open_storage(address), name, objectives=objectives, sampler=sampler, pruner=optuna.pruners.NopPruner()
    )


def test_a_study_is_made_once_and_opened_later(address: str) -> None:
    make(address).tell(make(address).ask(SPACE), 1.5)
    found = load_study(address, "sac")
    assert found.best_value == 1.5
    assert found.metric_names == ["sharpe"]
    assert make(address).best_value == 1.5


def test_a_study_keeps_its_objectives(address: str) -> None:
    make(address)
    with pytest.raises(ConfigError, match=r"was made for \{'sharpe': 'maximize'\}.*study_name=NAME"):
        make(address, objectives={"sharpe": "minimize"})
    with pytest.raises(ConfigError, match="max_drawdown"):
        make(address, objectives={"sharpe": "maximize", "max_drawdown": "maximize"})


def test_what_is_not_there_is_named(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no .*studies"):
        load_study(address, "sac")
    assert list(tmp_path.iterdir()) == []  # looking makes no empty storage
    make(address)
    with pytest.raises(ConfigError, match="no study ppo.*studies there: sac"):
        load_study(address, "ppo")
    with pytest.raises(ConfigError, match="the storage nonsense cannot be opened.*journal:///FILE"):
        open_storage("nonsense")


def reporting(address: str, study: optuna.Study, folder: str, *, startup: int = 1, warmup: int = 0) -> StudyTrial:
    study.ask(SPACE).set_user_attr(FOLDER, folder)
    return StudyTrial(
        address, "sac", folder, pruner=make_pruner("median", startup_trials=startup), warmup_checks=warmup
    )


def test_a_trial_below_the_median_ends_at_its_next_check(address: str) -> None:
    study = make(address)
    first = study.ask(SPACE)
    first.report(1.0, 512)
    study.tell(first, 1.0)
    trial = reporting(address, study, "/sweep/1")
    trial.report(500, {"sharpe": -1.0})  # the other one had no check by then
    trial.report(600, {"sharpe": 2.0, "turnover": 9.0})
    worse = reporting(address, study, "/sweep/2", warmup=1)
    worse.report(512, {"sharpe": 0.5})
    with pytest.raises(TrialPrunedError, match=r"trial 2 was pruned at check 2, step 1024, with sharpe 0\.5"):
        worse.report(1024, {"sharpe": 0.5})
    assert load_study(address, "sac").trials[1].intermediate_values == {500: -1.0, 600: 2.0}


def test_a_run_that_goes_on_reports_no_check_twice(address: str) -> None:
    study = make(address)
    reporting(address, study, "/sweep/0").report(512, {"sharpe": 1.0})
    again = StudyTrial(address, "sac", "/sweep/0", pruner=make_pruner("none", startup_trials=0))
    with warnings.catch_warnings(action="error"):  # Optuna's, of a step that it has
        again.report(512, {"sharpe": 3.0})
    again.report(1024, {"sharpe": 2.0})
    assert load_study(address, "sac").trials[0].intermediate_values == {512: 1.0, 1024: 2.0}


def test_nothing_is_reported_where_optuna_cannot_prune(address: str) -> None:
    study = make(address, objectives={"sharpe": "maximize", "turnover": "minimize"})
    reporting(address, study, "/sweep/0").report(1, {"sharpe": -99.0, "turnover": 1.0})
    assert load_study(address, "sac").trials[0].intermediate_values == {}


def test_a_check_without_the_objective_is_not_reported(address: str) -> None:
    reporting(address, make(address), "/sweep/0").report(1, {"growth": 1.0})
    assert load_study(address, "sac").trials[0].intermediate_values == {}


def test_a_job_that_no_sweep_asked_for_is_refused(address: str) -> None:
    make(address)
    with pytest.raises(ConfigError, match="no running trial in /sweep/7"):
        StudyTrial(address, "sac", "/sweep/7", pruner=make_pruner("none", startup_trials=0))


def test_pruned_and_failed_trials_are_tries_without_a_model(address: str) -> None:
    study = make(address)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.tell(study.ask(SPACE), state=state)
    study.tell(study.ask(SPACE), 1.0)
    assert reporting(address, study, "/sweep/3").unregistered() == 2
