"""Sweeps as a shell starts them: side by side, pruned; and the dashboard."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from wsgiref.simple_server import WSGIServer, make_server

import optuna
import pytest
from optuna.trial import TrialState

from trade_agent.search.studies import create_study, load_study, open_storage
from trade_agent.training.model_registry import ModelRegistry

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "search=cnn_lstm", "trainer=smoke", "trainer.cross_fit_folds=0", "device=cpu", "device.threads=1",
    "preprocessing=minimal", "data.start=2011-06-01", "evaluation.min_bars=300", "evaluation.bootstrap_samples=100",
    "model.conv_channels=[8]", "model.lstm_hidden=8", "model.window_bars=16", "monitoring=off",
)  # fmt: skip
WAIT = 600  # seconds; a busy machine is no failure


def start(folder: Path, *overrides: str, path: Path = ROOT) -> subprocess.Popen[str]:
    """A sweep in `folder`. path: whose sitecustomize.py, if it has one, runs first."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *overrides]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{path}"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def study(folder: Path) -> optuna.Study:
    return load_study(f"journal:///{folder}/outputs/studies.journal", "cnn_lstm")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_sweeps_at_once_share_the_trials_of_one_new_study(tmp_path: Path) -> None:
    sweeps = [start(tmp_path, "hydra.sweeper.n_trials=4") for _ in range(2)]
    for sweep in sweeps:
        output, _ = sweep.communicate(timeout=WAIT)
        assert sweep.returncode == 0, output
    trials = study(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert [record.study for record in ModelRegistry(tmp_path / "models").list("cnn_lstm")] == ["cnn_lstm"] * 4


# Runs in the sweep before the program: the process is killed in the middle of its second trial.
KILL_SECOND_TRIAL = """
import os, signal
from trade_agent.training.monitoring.watch import Watch

real, epochs = Watch.metrics, []

def metrics(self, step, values):
    real(self, step, values)
    epochs.append(step)
    if epochs.count(1) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Watch.metrics = metrics
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sweep_that_is_killed_goes_on_by_the_same_command(tmp_path: Path) -> None:
    """One sweep is killed in a trial, a second one on the same study beside it: no trial is lost or had twice."""
    (tmp_path / "sitecustomize.py").write_text(KILL_SECOND_TRIAL, encoding="utf-8")
    six = ("hydra.sweeper.n_trials=6", "hydra.sweeper.pruner=none")
    sweeps = [start(tmp_path, *six, path=tmp_path) for _ in range(2)]
    for sweep in sweeps:
        output, _ = sweep.communicate(timeout=WAIT)
        assert sweep.returncode == -signal.SIGKILL, output
    # The one that began later may have found the other one dead, and have taken its trial over.
    before = study(tmp_path).trials
    finished = {trial.number: trial.values for trial in before if trial.state == TrialState.COMPLETE}
    cut_off = [trial for trial in before if trial.state in (TrialState.RUNNING, TrialState.FAIL)]
    assert (len(finished), len(cut_off)) == (2, 2)

    again = start(tmp_path, *six)
    output, _ = again.communicate(timeout=WAIT)
    assert again.returncode == 0, output
    for trial in cut_off:
        said = f"trial {trial.number} was left running by a sweep that is gone: failed, and tried again"
        assert (said in output) == (trial.state == TrialState.RUNNING)
    after = study(tmp_path).trials
    complete = [trial for trial in after if trial.state == TrialState.COMPLETE]
    assert len(complete) == 6
    assert finished.items() <= {trial.number: trial.values for trial in complete}.items()
    assert [trial.number for trial in after if trial.state == TrialState.FAIL] == [trial.number for trial in cut_off]
    assert len(after) == 8  # nothing is left waiting or running
    tried = [trial.params for trial in complete]
    assert all(tried.count(trial.params) == 1 for trial in (*cut_off, *complete))
    assert len(list((tmp_path / "models/cnn_lstm").glob("metadata_v*.json"))) == 6


@pytest.mark.slow
def test_a_pruned_trial_registers_nothing_and_is_no_error(tmp_path: Path) -> None:
    address = f"journal:///{tmp_path}/outputs/studies.journal"
    made = create_study(
        open_storage(address), "cnn_lstm", objectives={"skill_score": "maximize"}, sampler=None, pruner=None
    )
    for _ in range(4):  # scores that no forecaster reaches
        trial = made.ask()
        for check in (1, 2, 3):
            trial.report(2.0, check)
        made.tell(trial, 2.0)
    sweep = start(tmp_path, "hydra.sweeper.n_trials=5", "hydra.sweeper.pruner_warmup_checks=1")
    output, _ = sweep.communicate(timeout=WAIT)
    assert sweep.returncode == 0, output
    assert "trial 4 was pruned at check 1" in output
    assert [trial.state for trial in study(tmp_path).trials] == [TrialState.COMPLETE] * 4 + [TrialState.PRUNED]
    assert not list((tmp_path / "models").glob("**/*.pth"))
    assert not list((tmp_path / "outputs").glob("**/error.json"))
    assert not list((tmp_path / "outputs").glob("**/checkpoints"))


def test_the_dashboard_shows_the_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    storage = open_storage(f"journal:///{tmp_path}/studies.journal")
    create_study(storage, "sac", objectives={"sharpe": "maximize"}, sampler=None, pruner=None)
    server: WSGIServer = make_server("127.0.0.1", 0, dashboard.wsgi(storage))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/api/studies", timeout=300) as answer:
            shown = json.load(answer)["study_summaries"]
    finally:
        server.shutdown()
        server.server_close()
    assert [summary["study_name"] for summary in shown] == ["sac"]
