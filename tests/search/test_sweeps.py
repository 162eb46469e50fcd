"""What sweeps on one study agree on, against real storages and real locks."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from trade_agent.search.studies import counted, create_study, open_storage
from trade_agent.search.sweeps import FOLDER, KILLED, SWEEP, Sweeps, put_back, put_back_dead
from trade_agent.training import resume

SPACE = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
SERVER = "postgresql+psycopg://me@host/optuna"


@pytest.fixture(params=["journal:///{}/a/studies.journal", "sqlite:///{}/a/studies.db"], ids=["journal", "sqlite"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


def make(address: str) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=1)
    return create_study(
        open_storage(address),
        "sac",
        objectives={"sharpe": "maximize"},
        sampler=sampler,
        pruner=optuna.pruners.NopPruner(),
    )


def asked(study: optuna.Study, sweep: Sweeps, folder: Path) -> optuna.Trial:
    trial = study.ask(SPACE)
    trial.set_user_attr(SWEEP, sweep.own)
    trial.set_user_attr(FOLDER, str(folder))
    return trial


def test_a_trial_of_a_killed_sweep_waits_to_go_on_as_it_is(address: str, tmp_path: Path) -> None:
    study, dead = make(address), Sweeps(address, tmp_path / "outputs of the dead one")
    with Sweeps(address, tmp_path / "its own") as alive, Sweeps(address, tmp_path) as own:
        for sweep in (dead, alive, own):
            asked(study, sweep, tmp_path / "0").report(0.5, 512)
        with own.asking():
            (line,) = put_back_dead(study, own, max_restarts=0)
            assert line == "trial 0 was left running by a sweep that is gone: it goes on"
            assert put_back_dead(study, own, max_restarts=0) == []
    assert [trial.state.name for trial in study.trials] == ["WAITING", "RUNNING", "RUNNING"]
    assert [trial.number for trial in counted(study)] == [1, 2]
    before, again = study.trials[0], make(address).ask(SPACE)
    assert (again.number, again.params) == (0, before.params)
    after = make(address).trials[0]
    assert after.state == TrialState.RUNNING
    assert after.user_attrs[FOLDER] == str(tmp_path / "0")
    assert after.intermediate_values == {512: 0.5}
    study.tell(again, 1.0)
    assert make(address).best_trial.number == 0


def test_a_trial_that_kills_its_sweeps_fails(address: str, tmp_path: Path) -> None:
    study, own = make(address), Sweeps(address, tmp_path)
    folder = tmp_path / "0"
    for killed, begun in enumerate((False, True, True), start=0):
        if begun:
            folder.mkdir(exist_ok=True)
        trial = asked(study, Sweeps(address, tmp_path), folder)
        (line,) = put_back_dead(study, own, max_restarts=1)
        assert trial.number == 0
        assert study.trials[0].user_attrs[KILLED] == killed
    assert line == "trial 0 was under way when its sweep was killed, 2 times: failed"
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


def test_a_trial_whose_sweep_was_stopped_waits_however_often(address: str, tmp_path: Path) -> None:
    study = make(address)
    for _ in range(5):
        trial = asked(study, Sweeps(address, tmp_path), tmp_path)
        put_back(study, trial)
    assert [(trial.state, trial.user_attrs.get(KILLED)) for trial in study.trials] == [(TrialState.WAITING, None)]


def test_a_job_that_outlives_its_sweep_is_left_to_end(address: str, tmp_path: Path) -> None:
    study, own = make(address), Sweeps(address, tmp_path)
    asked(study, Sweeps(address, tmp_path), tmp_path / "0")
    with resume.locked(tmp_path / "0"):
        assert put_back_dead(study, own, max_restarts=2) == []
    assert study.trials[0].state == TrialState.RUNNING
    assert put_back_dead(study, own, max_restarts=2)
    assert study.trials[0].state == TrialState.WAITING


def test_what_happens_on_a_server_with_other_outputs_cannot_be_told(tmp_path: Path) -> None:
    one, other = Sweeps(SERVER, tmp_path / "one"), Sweeps(SERVER, tmp_path / "other")
    assert one.alive(other.own)
    assert not one.alive(Sweeps(SERVER, tmp_path / "one").own)
    with Sweeps(SERVER, tmp_path / "one") as alive:
        assert one.alive(alive.own)


@pytest.mark.distributed
def test_the_lock_of_a_sweep_ends_with_its_process(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/studies.db"
    code = "import sys, pathlib; from trade_agent.search.sweeps import Sweeps\n"
    code += "with Sweeps(sys.argv[1], pathlib.Path()) as sweeps: print(sweeps.own, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    other = process.stdout.readline().strip()
    sweeps = Sweeps(address, tmp_path)
    lock = tmp_path / f"studies.db.sweeps/{other.removeprefix('#')}.lock"
    assert sweeps.alive(other)
    process.kill()
    process.wait()
    assert lock.is_file()
    assert not sweeps.alive(other)
    assert not lock.exists()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
