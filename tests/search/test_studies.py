"""Studies, and what sweeps on one study agree on, against real storages."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from trade_agent.errors import ConfigError, TrialPrunedError
from trade_agent.search import studies
from trade_agent.search.studies import Sweeps, abandon_dead, counted, create_study, load_study, open_storage
from trade_agent.search.trial import StudyTrial, job_name, make_pruner

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


def test_a_trial_of_a_killed_sweep_is_failed_and_tried_again(address: str, tmp_path: Path) -> None:
    study, dead = make(address), Sweeps(tmp_path / "locks")
    with Sweeps(tmp_path / "locks") as alive, Sweeps(tmp_path / "locks") as own:
        for sweep in (dead, alive, own):
            trial = study.ask(SPACE)
            trial.set_user_attr(studies.SWEEP, sweep.own)
        with own.asking():
            assert abandon_dead(study, own) == [0]
            assert abandon_dead(study, own) == []
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING, TrialState.WAITING]
    assert [trial.number for trial in counted(study)] == [1, 2]
    again = study.ask(SPACE)
    assert again.number == 3
    assert again.params == study.trials[0].params


@pytest.mark.distributed
def test_the_lock_of_a_sweep_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, pathlib; from trade_agent.search.studies import Sweeps\n"
    code += "with Sweeps(pathlib.Path(sys.argv[1])) as sweeps: print(sweeps.own, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ,
    )  # fmt: skip
    assert process.stdout is not None
    other = process.stdout.readline().strip()
    sweeps = Sweeps(tmp_path)
    assert sweeps.alive(other)
    process.kill()
    process.wait()
    assert (tmp_path / f"{other}.lock").is_file()
    assert not sweeps.alive(other)
    assert not (tmp_path / f"{other}.lock").exists()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()


def reporting(address: str, study: optuna.Study, pruner: str = "median", job: str = "sweep#0") -> StudyTrial:
    trial = study.ask(SPACE)
    trial.set_user_attr(studies.JOB, job)
    return StudyTrial(address, "sac", job, pruner=make_pruner(pruner, startup_trials=1, warmup_checks=1))


def with_reports(study: optuna.Study, values: list[float]) -> None:
    trial = study.ask(SPACE)
    for check, value in enumerate(values, start=1):
        trial.report(value, check)
    study.tell(trial, values[-1])


def test_a_trial_below_the_median_ends_at_its_next_check(address: str) -> None:
    study = make(address)
    with_reports(study, [1.0, 1.0, 1.0])
    trial = reporting(address, study)
    trial.report({"sharpe": 2.0, "turnover": 9.0})
    trial.report({"sharpe": 2.0})
    worse = reporting(address, study, job="sweep#1")
    with pytest.raises(TrialPrunedError, match=r"trial 2 was pruned at check 1 with sharpe 0\.5"):
        worse.report({"sharpe": 0.5})
    never = reporting(address, study, pruner="none", job="sweep#2")
    never.report({"sharpe": -9.0})
    assert load_study(address, "sac").trials[1].intermediate_values == {1: 2.0, 2: 2.0}


def test_a_job_that_goes_on_counts_its_checks_on(address: str) -> None:
    study = make(address)
    first = reporting(address, study)
    first.report({"sharpe": 1.0})
    again = StudyTrial(address, "sac", "sweep#0", pruner=make_pruner("none", startup_trials=0, warmup_checks=0))
    again.report({"sharpe": 2.0})
    assert load_study(address, "sac").trials[0].intermediate_values == {1: 1.0, 2: 2.0}


def test_nothing_is_reported_where_optuna_cannot_prune(address: str) -> None:
    study = make(address, objectives={"sharpe": "maximize", "turnover": "minimize"})
    reporting(address, study).report({"sharpe": -99.0, "turnover": 1.0})
    assert load_study(address, "sac").trials[0].intermediate_values == {}


def test_a_check_without_the_objective_is_not_reported(address: str) -> None:
    reporting(address, make(address)).report({"growth": 1.0})
    assert load_study(address, "sac").trials[0].intermediate_values == {}


def test_a_job_that_no_sweep_asked_for_is_refused(address: str) -> None:
    make(address)
    with pytest.raises(ConfigError, match="no running trial for sweep#7"):
        StudyTrial(address, "sac", job_name("sweep", 7), pruner=make_pruner("none", startup_trials=0, warmup_checks=0))


def test_pruned_and_failed_trials_are_tries_without_a_model(address: str) -> None:
    study = make(address)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.tell(study.ask(SPACE), state=state)
    study.tell(study.ask(SPACE), 1.0)
    assert reporting(address, study).unregistered() == 2
