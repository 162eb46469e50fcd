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

from trade_agent.config.quoting import quoted
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


def journal(folder: Path) -> str:
    return f"journal:///{folder}/outputs/studies.journal"


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return journal(tmp_path) if request.param == "journal" else request.getfixturevalue(request.param)


def study(folder: Path, storage: str = "") -> optuna.Study:
    return load_study(storage or journal(folder), "cnn_lstm")


def weights(folder: Path, storage: str = "") -> dict[tuple[tuple[str, object], ...], str]:
    """Digest of the weights of every registered forecaster, by the settings that the study chose for it."""
    records = ModelRegistry(folder / "models").find("cnn_lstm", lambda record: True)
    digests = {record.run_id: record.weights_sha256 for record in records}
    found = {}
    for trial in study(folder, storage).trials:
        run = json.loads((Path(trial.user_attrs["folder"]) / "run.json").read_text())["run_id"]
        found[tuple(sorted(trial.params.items()))] = digests[f"{run}-cnn_lstm"]
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_two_sweeps_at_once_share_the_trials_of_one_new_study(tmp_path: Path) -> None:
    """Also where they keep their runs in different folders."""
    same = ("hydra.sweeper.n_trials=4", "hydra.sweeper.storage=journal:///outputs/studies.journal")
    sweeps = [start(tmp_path, *same, f"paths.outputs={outputs}") for outputs in ("outputs", "elsewhere")]
    for sweep in sweeps:
        output, _ = sweep.communicate(timeout=WAIT)
        assert sweep.returncode == 0, output
        assert "a sweep that is gone" not in output
    trials = study(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert [record.study for record in ModelRegistry(tmp_path / "models").list("cnn_lstm")] == ["cnn_lstm"] * 4


# Runs in the sweep before the program: sends it a signal in the first epoch of the second trial that it trains. Every
# epoch that is trained is written down.
IN_SECOND_TRIAL = """
import os, signal
from trade_agent.training.monitoring.watch import Watch

real, epochs = Watch.metrics, []

def metrics(self, step, values):
    real(self, step, values)
    epochs.append(step)
    with open("epochs", "a") as file:
        file.write(f"{step} ")
    if epochs.count(1) == 2:
        os.kill(os.getpid(), signal.SIGNAL)

Watch.metrics = metrics
"""


def signal_in_second_trial(folder: Path, name: str) -> None:
    (folder / "sitecustomize.py").write_text(IN_SECOND_TRIAL.replace("SIGNAL", name), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.distributed
def test_sweeps_that_are_killed_go_on_by_the_same_command(tmp_path: Path, storage: str) -> None:
    """Two sweeps on one study are killed in a trial: none is lost or had twice."""
    signal_in_second_trial(tmp_path, "SIGKILL")
    six = ("hydra.sweeper.n_trials=6", "hydra.sweeper.pruner=none", f"hydra.sweeper.storage={quoted(storage)}")
    sweeps = [start(tmp_path, *six, path=tmp_path) for _ in range(2)]
    for sweep in sweeps:
        output, _ = sweep.communicate(timeout=WAIT)
        assert sweep.returncode == -signal.SIGKILL, output
    before = study(tmp_path, storage).trials
    finished = {trial.number: trial.values for trial in before if trial.state == TrialState.COMPLETE}
    # The one that lived longer may have gone on with the trial of the other one.
    cut_off = [trial.number for trial in before if trial.state == TrialState.RUNNING]
    assert len(finished) == 2
    assert len(cut_off) == len(before) - 2

    again = start(tmp_path, *six)
    output, _ = again.communicate(timeout=WAIT)
    assert again.returncode == 0, output
    for number in cut_off:
        assert f"trial {number} was left running by a sweep that is gone: it goes on" in output
    after = study(tmp_path, storage).trials
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 6
    assert finished.items() <= {trial.number: trial.values for trial in after}.items()
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]
    assert len(set(weights(tmp_path, storage).values())) == 6


@pytest.mark.slow
@pytest.mark.distributed
def test_a_search_that_is_stopped_goes_on_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    for folder in (stopped, undisturbed):
        folder.mkdir()
    two = ("hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=3")
    signal_in_second_trial(stopped, "SIGTERM")
    sweep = start(stopped, *two, path=stopped)
    output, _ = sweep.communicate(timeout=WAIT)
    assert sweep.returncode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM\n" in output
    assert "go on with: python train.py -m search=cnn_lstm" in output
    assert "resume=" not in output
    assert [trial.state for trial in study(stopped).trials] == [TrialState.COMPLETE, TrialState.WAITING]

    for folder in (stopped, undisturbed):
        sweep = start(folder, *two, path=stopped if folder == stopped else ROOT)
        output, _ = sweep.communicate(timeout=WAIT)
        assert sweep.returncode == 0, output
    assert (stopped / "epochs").read_text().split() == ["1", "2", "1", "2"]  # none was trained twice
    assert len(weights(stopped)) == 2
    assert weights(stopped) == weights(undisturbed)
    assert study(stopped).trials[1].values == study(undisturbed).trials[1].values


@pytest.mark.slow
def test_a_pruned_trial_registers_nothing_and_is_no_error(tmp_path: Path) -> None:
    address = f"journal:///{tmp_path}/outputs/studies.journal"
    made = create_study(
        open_storage(address), "cnn_lstm", objectives={"skill_score": "maximize"}, sampler=None, pruner=None
    )
    for _ in range(4):  # scores that no forecaster reaches
        trial = made.ask()
        trial.report(2.0, 1)
        made.tell(trial, 2.0)
    sweep = start(tmp_path, "hydra.sweeper.n_trials=5", "hydra.sweeper.pruner_warmup_checks=1")
    output, _ = sweep.communicate(timeout=WAIT)
    assert sweep.returncode == 0, output
    assert "trial 4 was pruned at check 2, step 2, with skill_score" in output
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
