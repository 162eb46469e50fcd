"""Sweeps on a real SLURM: jobs that are cancelled, preempted, out of time or on a node that dies.

A job that is to be disturbed is halted in its midst, so that it cannot be over before the disturbance. Its one or two
tasks train one model, which must be the one that as many processes train without a SLURM.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.hold import Hold
from tests.cluster.lab import ROOT, Lab, Task, until
from tests.wheel import install_wheel
from trade_agent.search.studies import load_study

pytestmark = pytest.mark.slurm
EVERY_STEP = "trainer.checkpoint_seconds=0"
ONE_ENDLESS = ("trainer.forecaster_epochs=1000000,2", "trainer.forecaster_patience=1000000", EVERY_STEP)
ALONE, ON_ONE_NODE, ON_TWO_NODES = "hydra.launcher.nodes=1", "hydra.launcher.tasks_per_node=2", "hydra.launcher.nodes=2"


def finish(sweep: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    try:
        _, errors = sweep.communicate(timeout=900)
    finally:
        sweep.kill()
    return sweep.returncode, errors


def weights(models: Path) -> dict[int, str]:
    """Digest of the weights of every registered forecaster, by the seed of its run."""
    found = {}
    for path in models.glob("cnn_lstm/metadata_v*.json"):
        metadata = json.loads(path.read_text())
        config = json.loads((path.parent / path.name.replace("metadata", "config")).read_text())
        assert config["seed"] not in found
        found[config["seed"]] = metadata["weights_sha256"]
    return found


@functools.cache
def undisturbed(processes: int) -> dict[int, str]:
    """Weights of the same training without a SLURM."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "train.py", "stage=cnn_lstm", "trainer=smoke", f"device.processes={processes}"]
        command += [f"paths.models={folder / 'models'}", f"hydra.run.dir={folder / 'run'}", EVERY_STEP]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=900)
        return weights(folder / "models")


def halted(lab: Lab, folder: Path, tasks: int, hold: Hold) -> list[Task]:
    """Halt the training of a job in its midst. Returns its tasks by rank."""
    until(lambda: hold.reached(tasks), "the job to be at work")
    found = lab.tasks(folder / "sweep")
    assert len(found) == tasks
    for task in found:
        os.kill(task.process, signal.SIGSTOP)
    hold.release()  # of no avail before it is told to go on
    return found


def go_on(tasks: list[Task]) -> None:
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(task.process, signal.SIGCONT)


def only_job(lab: Lab) -> dict[str, str]:
    (job,) = [job for job in lab.jobs() if job["JobName"] == "train"]
    return job


def ends_as_if_undisturbed(sweep: subprocess.Popen[str], lab: Lab, folder: Path, tasks: int) -> None:
    code, errors = finish(sweep)
    assert code == 0, errors
    assert only_job(lab)["Restarts"] == "1"
    assert weights(folder / "models") == undisturbed(tasks)


def only_the_second_is_registered(sweep: subprocess.Popen[str], folder: Path) -> None:
    code, errors = finish(sweep)
    assert code == 1
    assert "ended without a result" in errors
    assert "Traceback" not in errors
    assert len(weights(folder / "models")) == 1
    assert (folder / "sweep/1/result.json").exists()


def test_the_jobs_of_a_sweep_register_into_one_registry(lab: Lab, tmp_path: Path) -> None:
    code, errors = finish(lab.sweep(tmp_path, "seed=1,2,3", EVERY_STEP))
    assert code == 0, errors
    found = weights(tmp_path / "models")
    assert sorted(found) == [1, 2, 3]
    assert found[1] == undisturbed(1)[1]
    assert all((tmp_path / f"sweep/{number}/result.json").exists() for number in range(3))
    verify = [sys.executable, "-m", "trade_agent.cli", "registry", "verify", "--models-dir", str(tmp_path / "models")]
    lab.call(*verify)


@pytest.mark.parametrize("shape", [ON_ONE_NODE, ON_TWO_NODES])
def test_the_tasks_of_a_job_train_one_model(lab: Lab, tmp_path: Path, shape: str) -> None:
    code, errors = finish(lab.sweep(tmp_path, "seed=1,2", EVERY_STEP, shape))
    assert code == 0, errors
    found = weights(tmp_path / "models")
    assert sorted(found) == [1, 2]
    assert found[1] == undisturbed(2)[1]
    for number in range(2):
        assert json.loads((tmp_path / f"sweep/{number}/result.json").read_text())["world_size"] == 2
        assert not (tmp_path / f"sweep/{number}/error.json").exists()


def test_a_cancelled_trial_does_not_end_the_sweep(lab: Lab, tmp_path: Path) -> None:
    sweep = lab.sweep(tmp_path, *ONE_ENDLESS)
    until(lambda: list(tmp_path.glob("sweep/0/checkpoints/cnn_lstm/*.pth")), "the first trial to be at work")
    (job,) = [job for job in lab.jobs() if job.get("ArrayTaskId") == "0"]
    lab.call("scancel", f"{job['ArrayJobId']}_0")
    only_the_second_is_registered(sweep, tmp_path)


def test_a_job_of_which_one_task_is_killed_is_a_failed_trial(lab: Lab, tmp_path: Path) -> None:
    sweep = lab.sweep(tmp_path, *ONE_ENDLESS, ON_ONE_NODE)
    until(lambda: (tmp_path / "sweep/1/result.json").exists(), "the second trial to be over")
    until(lambda: list(tmp_path.glob("sweep/0/checkpoints/cnn_lstm/*.pth")), "the first trial to be at work")
    first = next(job for job in lab.jobs() if job.get("ArrayTaskId") == "0")["JobId"]
    (victim,) = [task for task in lab.tasks(tmp_path / "sweep") if task.job == first and task.rank == 1]
    os.kill(victim.process, signal.SIGKILL)
    only_the_second_is_registered(sweep, tmp_path)
    error = json.loads((tmp_path / "sweep/0/error.json").read_text())
    assert error["error"] == "PeerLostError"
    assert error["resume"] == f"python train.py resume={tmp_path / 'sweep/0'}"


@pytest.mark.parametrize(("tasks", "shape"), [(1, ALONE), (2, ON_ONE_NODE)])
def test_a_preempted_job_goes_on_to_the_same_weights(lab: Lab, tmp_path: Path, tasks: int, shape: str) -> None:
    hold = Hold(tmp_path)
    sweep = lab.sweep(tmp_path, "seed=1", EVERY_STEP, "hydra.launcher.partition=low", shape, hold=hold)
    halted(lab, tmp_path, tasks, hold)
    urgent = ["sbatch", "--parsable", "--partition=main", "--nodes=3", "--exclusive", "--output=/dev/null"]
    blocker = lab.call(*urgent, "--wrap", "sleep 3600").strip()
    until(lambda: only_job(lab)["JobState"] == "PENDING", "the job to be back in the queue")
    lab.call("scancel", blocker)
    ends_as_if_undisturbed(sweep, lab, tmp_path, tasks)


@pytest.mark.parametrize(("tasks", "shape"), [(1, ALONE), (2, ON_TWO_NODES)])
def test_a_job_out_of_time_goes_on_to_the_same_weights(lab: Lab, tmp_path: Path, tasks: int, shape: str) -> None:
    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=60"]
    hold = Hold(tmp_path)
    sweep = lab.sweep(tmp_path, "seed=1", EVERY_STEP, *limits, shape, hold=hold)
    at_rest = halted(lab, tmp_path, tasks, hold)
    until(lambda: all(told(task.process, signal.SIGUSR2) for task in at_rest), "SLURM to announce the end of the time")
    lab.call("scontrol", "update", f"JobId={only_job(lab)['JobId']}", "TimeLimit=60")
    go_on(at_rest)
    ends_as_if_undisturbed(sweep, lab, tmp_path, tasks)


def told(process: int, number: int) -> bool:
    """Whether a signal waits for a halted process, or has ended it."""
    try:
        status = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return True
    masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize(
    ("tasks", "shape", "rank"),
    [(1, ALONE, 0), (2, ON_TWO_NODES, 0), (2, ON_TWO_NODES, 1)],
    ids=["alone", "the first of two", "the second of two"],
)
def test_a_job_whose_node_dies_goes_on_elsewhere_to_the_same_weights(
    lab: Lab, tmp_path: Path, tasks: int, shape: str, rank: int
) -> None:
    hold = Hold(tmp_path)
    sweep = lab.sweep(tmp_path, "seed=1", EVERY_STEP, shape, hold=hold)
    at_rest = halted(lab, tmp_path, tasks, hold)
    lab.lose(at_rest[rank].node)
    go_on(at_rest)
    ends_as_if_undisturbed(sweep, lab, tmp_path, tasks)
    assert at_rest[rank].node not in lab.call("scontrol", "show", "hostnames", only_job(lab)["NodeList"]).split()


def test_a_sweep_that_was_killed_and_starts_again_goes_on_with_the_runs_of_its_jobs(lab: Lab, tmp_path: Path) -> None:
    """One of them is at work then, and the other still waits."""
    hold = Hold(tmp_path)
    command = ("seed=1,2", EVERY_STEP, "hydra.launcher.array_parallelism=1")
    killed = lab.sweep(tmp_path, *command, hold=hold)
    at_rest = halted(lab, tmp_path, 1, hold)
    killed.kill()
    killed.communicate()
    again = lab.sweep(tmp_path, *command)
    until(lambda: told(at_rest[0].process, signal.SIGTERM), "the job at work to be cancelled")
    go_on(at_rest)
    code, errors = finish(again)
    assert code == 0, errors
    assert [job["JobState"] == "CANCELLED" for job in lab.jobs()].count(True) == 2
    found = weights(tmp_path / "models")
    assert sorted(found) == [1, 2]
    assert found[1] == undisturbed(1)[1]


def test_a_search_from_an_installed_wheel_runs_its_trials_as_jobs_of_two_tasks(lab: Lab, tmp_path: Path) -> None:
    command = [str(install_wheel(tmp_path) / "trade-agent"), "train", "cnn-lstm", "--optimize", "--"]
    command += [
        "hydra/launcher=slurm",
        ON_ONE_NODE,
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
        "trainer=smoke",
    ]
    environment = {name: value for name, value in lab.environment.items() if name != "PYTHONPATH"}
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best trial " in done.stdout.splitlines()[-1]
    study = load_study(f"journal:///{work}/outputs/studies.journal", "cnn_lstm")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert len(list(work.glob("models/cnn_lstm/metadata_v*.json"))) == 2
    assert {job["NumTasks"] for job in lab.jobs()} == {"2"}
