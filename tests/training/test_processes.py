"""Whole runs of several processes: how they are started, fail, are started again and go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hold import Hold
from tests.cluster.lab import until
from trade_agent.errors import ConfigError
from trade_agent.training.resume import locked

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "train.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TRAIN)
FORECASTER = ("stage=cnn_lstm", "trainer=smoke", "trainer.cross_fit_folds=0", "device=cpu", "hydra.run.dir=run")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def python(*arguments: str, cwd: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def weights(folder: Path) -> dict[str, str]:
    """Digest of the weights of every registered model."""
    stored = {
        path.relative_to(folder): json.loads(path.read_text()) for path in folder.glob("models/*/metadata_v*.json")
    }
    return {str(path): metadata["weights_sha256"] for path, metadata in stored.items() if "weights_sha256" in metadata}


def test_both_doors_give_the_same_models_and_one_writer(tmp_path: Path) -> None:
    options = ("stage=ensemble", "model.combiner=gate", "trainer=smoke", "trainer.cross_fit_folds=0", "device=cpu")
    options += ("trainer.on_policy_env_steps=2048", "trainer.joint_on_policy_env_steps=2048", "env.episode_bars=32")
    options += ("trainer.off_policy_env_steps=320", "trainer.joint_off_policy_env_steps=160")
    door = python(TRAIN, *options, "device.processes=2", cwd=tmp_path / "launch")
    assert door.returncode == 0, door.stderr[-3000:]
    assert door.stdout.splitlines()[-1].startswith("model_id: ensemble_v1.0.0_grade_")
    (run,) = (tmp_path / "launch/outputs/ensemble").iterdir()
    assert json.loads((run / "result.json").read_text())["world_size"] == 2
    trained = sorted(name.split("/")[1] for name in weights(tmp_path / "launch"))
    assert trained == ["cnn_lstm", "ensemble", "hybrid", "hybrid", "hybrid", "ppo", "sac", "td3"]

    other = python(*TORCHRUN, *options, cwd=tmp_path / "torchrun")
    assert other.returncode == 0, other.stderr[-3000:]
    assert weights(tmp_path / "torchrun") == weights(tmp_path / "launch")
    assert len(list((tmp_path / "torchrun/outputs/ensemble").iterdir())) == 1
    sweep = python(*TORCHRUN, "-m", *options, cwd=tmp_path / "sweep")
    assert sweep.returncode != 0
    assert "use: python train.py -m device.processes=2 stage=ensemble" in sweep.stderr


KILL_ONE = """
import os, pathlib, signal
from trade_agent.training.checkpoint import Session

real, left = Session.boundary, 30

def boundary(self, **named):
    global left
    left -= 1
    real(self, **named)
    mark = pathlib.Path("killed.mark")
    if left == 0 and os.environ.get("RANK") == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

Session.boundary = boundary
"""


def test_a_worker_that_is_killed_costs_a_restart_and_nothing_else(tmp_path: Path) -> None:
    options = ("stage=rl", "model=sac", "trainer=smoke", "trainer.cross_fit_folds=0", "device=cpu")
    options += ("device.processes=2", "trainer.checkpoint_seconds=0")
    whole = python(TRAIN, *options, cwd=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    folder, hook = tmp_path / "killed", tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILL_ONE)  # runs in every worker, before the program
    done = python(TRAIN, *options, cwd=folder, path=f"{ROOT}:{hook}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(folder) == weights(tmp_path / "whole")


def test_workers_that_die_too_often_leave_the_cause_and_the_command_that_goes_on(tmp_path: Path) -> None:
    hook, folder = tmp_path / "hook", tmp_path / "killed"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILL_ONE.replace("30", "5"))
    options = (*FORECASTER, "device.processes=2", "device.max_restarts=0", "trainer.checkpoint_seconds=0")
    failed = python(TRAIN, *options, cwd=folder, path=f"{ROOT}:{hook}")
    assert failed.returncode == 1, failed.stderr[-3000:]
    said = "worker 1 was ended by SIGKILL"
    assert failed.stderr.splitlines()[-1].startswith(f"error: {said}; see ")
    error = json.loads((folder / "run/error.json").read_text())
    assert (error["stage"], error["message"]) == ("cnn_lstm", said)
    assert error["remedy"] == "if memory was short, lower model.num_envs"
    assert error["resume"] == f"python train.py resume={folder / 'run'}"
    done = python(TRAIN, "resume=run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder / "run/error.json").exists()


def test_wrong_input_is_found_once_before_a_worker_is_started(tmp_path: Path) -> None:
    options = ("stage=rl", "model=ppo", "model.num_envs=9", "trainer=smoke", "device.processes=2")
    refused = python(TRAIN, *options, cwd=tmp_path)
    assert refused.returncode == 2
    said = "error: model.num_envs=9 cannot be divided among 2 processes; use a multiple of them"
    assert refused.stderr.splitlines() == [said]
    under_torchrun = python(*TORCHRUN, *options[:-1], cwd=tmp_path)
    assert under_torchrun.returncode == 1
    assert under_torchrun.stderr.count(said) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


FAIL_ONE = """
import os
from trade_agent.training.checkpoint import Session

real, left = Session.boundary, 5

def boundary(self, **named):
    global left
    left -= 1
    if left == 0 and os.environ.get("RANK") == "1":
        raise OSError("the disk of this host is gone")
    real(self, **named)

Session.boundary = boundary
"""


def test_the_error_of_any_worker_is_kept_and_its_run_goes_on_in_as_many_processes(tmp_path: Path) -> None:
    hook, folder = tmp_path / "hook", tmp_path / "failed"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(FAIL_ONE)
    failed = python(*TORCHRUN, *FORECASTER, cwd=folder, path=f"{ROOT}:{hook}")
    assert failed.returncode == 1, failed.stderr[-3000:]
    said = "the disk of this host is gone; check that the disk is writable and has room, then resume"
    assert f"{said}; go on with: python train.py resume={folder / 'run'}" in failed.stderr
    assert json.loads((folder / "run/error.json").read_text())["message"] == "the disk of this host is gone"
    again = python(TRAIN, "resume=run", cwd=folder, path=f"{ROOT}:{hook}")  # in two processes, of which one fails again
    assert again.returncode == 1
    assert again.stderr.count("error: cnn_lstm failed: the disk of this host is gone") == 1, again.stderr
    assert again.stderr.splitlines()[-1].startswith("error: worker 1 ended with exit code 1; see ")
    assert json.loads((folder / "run/error.json").read_text())["message"] == "the disk of this host is gone"
    other = python(*TORCHRUN[:-2], "3", TRAIN, "resume=run", cwd=folder)
    assert "error: the run is one of 2 processes, and here are 3; train.py starts as many" in other.stderr
    done = python(TRAIN, "resume=run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "run/result.json").read_text())["world_size"] == 2
    for command in ((TRAIN, "resume=run"), (*TORCHRUN, "resume=run"), (*TORCHRUN, *FORECASTER)):
        finished = python(*command, cwd=folder)
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert "is finished: nothing is left to do" in finished.stderr


def test_a_form_of_torchrun_that_cannot_start_again_is_refused(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--max-restarts", "1")
    refused = python(*torchrun, TRAIN, *FORECASTER, cwd=tmp_path)
    assert refused.returncode == 1
    assert "use: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --max-restarts 1" in refused.stderr


def test_a_model_of_several_processes_knows_its_search(tmp_path: Path) -> None:
    options = ("-m", "search=cnn_lstm", *FORECASTER[1:-1], "device.processes=2", "hydra.sweeper.n_trials=1")
    done = python(TRAIN, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("models/cnn_lstm/metadata_v*.json")
    assert json.loads(path.read_text())["study"] == "cnn_lstm"


def held_in_training(folder: Path) -> tuple[subprocess.Popen[bytes], Hold]:
    """What `device.processes` has started, with both workers waiting in the midst of it. Its output is in log."""
    folder.mkdir()
    hold = Hold(folder)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{hold.path}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, TRAIN, *FORECASTER, "device.processes=2"]
    with open(folder / "log", "wb") as log:  # no pipe, which the workers would keep open
        starter = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    until(lambda: hold.reached(2), "both to train")
    return starter, hold


def test_a_signal_is_told_once(tmp_path: Path) -> None:
    starter, hold = held_in_training(tmp_path / "stopped")
    starter.send_signal(signal.SIGTERM)
    hold.release()
    assert starter.wait(timeout=600) == 143
    assert (tmp_path / "stopped/log").read_text().count("stopped by SIGTERM") == 1


def test_workers_stop_when_who_started_them_is_killed(tmp_path: Path) -> None:
    whole = python(TRAIN, *FORECASTER, "device.processes=2", cwd=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    folder = tmp_path / "killed"
    starter, hold = held_in_training(folder)
    starter.kill()
    starter.wait()
    hold.release()
    until(lambda: not_at_work(folder / "run"), "the workers to stop")
    assert not (folder / "run/result.json").exists()
    done = python(TRAIN, "resume=run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(folder) == weights(tmp_path / "whole")


def not_at_work(run_dir: Path) -> bool:
    """Whether nobody holds the lock of a run."""
    try:
        with locked(run_dir):
            return True
    except ConfigError:
        return False
