"""Sweeps on a real SLURM: jobs that are cancelled, preempted, out of time or on a node that dies.

A job that is to be disturbed is halted at its first checkpoint, so that it cannot be over before the disturbance.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.lab import ROOT, Lab, until

pytestmark = pytest.mark.slurm
EVERY_STEP = "trainer.checkpoint_seconds=0"


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Weights of the same training in one process without a SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "train.py", "stage=cnn_lstm", "trainer=smoke", EVERY_STEP]
    command += [f"paths.models={folder / 'models'}", f"hydra.run.dir={folder / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=900)
    return weights(folder / "models")


def halted(run: Path) -> int:
    """Halt the training of a job at its first checkpoint. Returns the process."""
    until(lambda: list(run.glob("checkpoints/cnn_lstm/*")), f"a checkpoint in {run}")
    (process,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and is_task_of(entry, str(run.parent))
    ]
    os.kill(process, signal.SIGSTOP)
    assert not (run / "result.json").exists()
    return process


def is_task_of(process: Path, sweep: str) -> bool:
    try:
        command = (process / "cmdline").read_text().split("\0")
    except OSError:  # ended in the meantime
        return False
    return (
        "submitit.core._submit" in command
        and any(word.startswith(sweep) for word in command)
        and "srun" not in command[0]
    )


def only_job(lab: Lab) -> dict[str, str]:
    (job,) = [job for job in lab.jobs() if job["JobName"] == "train"]
    return job


def test_the_jobs_of_a_sweep_register_into_one_registry(lab: Lab, tmp_path: Path, undisturbed: dict[int, str]) -> None:
    code, errors = finish(lab.sweep(tmp_path, "seed=1,2,3", EVERY_STEP))
    assert code == 0, errors
    found = weights(tmp_path / "models")
    assert sorted(found) == [1, 2, 3]
    assert found[1] == undisturbed[1]
    assert all((tmp_path / f"sweep/{number}/result.json").exists() for number in range(3))
    verify = [sys.executable, "-m", "trade_agent.cli", "registry", "verify", "--models-dir", str(tmp_path / "models")]
    lab.call(*verify)


def test_a_cancelled_trial_does_not_end_the_sweep(lab: Lab, tmp_path: Path) -> None:
    endless = "trainer.forecaster_epochs=1000000,2"
    sweep = lab.sweep(tmp_path, endless, "trainer.forecaster_patience=1000000", EVERY_STEP)
    until(lambda: list(tmp_path.glob("sweep/0/checkpoints/cnn_lstm/*")), "the first trial to be at work")
    (job,) = [job for job in lab.jobs() if job.get("ArrayTaskId") == "0"]
    lab.call("scancel", f"{job['ArrayJobId']}_0")
    code, errors = finish(sweep)
    assert code == 1
    assert "ended without a result" in errors
    assert "Traceback" not in errors
    assert len(weights(tmp_path / "models")) == 1
    assert (tmp_path / "sweep/1/result.json").exists()


def test_a_preempted_job_goes_on_to_the_same_weights(lab: Lab, tmp_path: Path, undisturbed: dict[int, str]) -> None:
    sweep = lab.sweep(tmp_path, "seed=1", EVERY_STEP, "hydra.launcher.partition=low")
    halted(tmp_path / "sweep/0")
    urgent = ["sbatch", "--parsable", "--partition=main", "--nodes=3", "--exclusive", "--output=/dev/null"]
    blocker = lab.call(*urgent, "--wrap", "sleep 3600").strip()
    until(lambda: only_job(lab)["JobState"] == "PENDING", "the job to be back in the queue")
    lab.call("scancel", blocker)
    code, errors = finish(sweep)
    assert code == 0, errors
    assert only_job(lab)["Restarts"] == "1"
    assert weights(tmp_path / "models") == undisturbed


def test_a_job_out_of_time_goes_on_to_the_same_weights(lab: Lab, tmp_path: Path, undisturbed: dict[int, str]) -> None:
    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=60"]
    sweep = lab.sweep(tmp_path, "seed=1", EVERY_STEP, *limits)
    process = halted(tmp_path / "sweep/0")
    until(lambda: told(process, signal.SIGUSR2), "SLURM to announce the end of the time")
    lab.call("scontrol", "update", f"JobId={only_job(lab)['JobId']}", "TimeLimit=60")
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    code, errors = finish(sweep)
    assert code == 0, errors
    assert only_job(lab)["Restarts"] == "1"
    assert weights(tmp_path / "models") == undisturbed


def told(process: int, number: int) -> bool:
    """Whether a signal waits for a halted process, or has ended it."""
    try:
        status = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return True
    masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_job_whose_node_dies_goes_on_elsewhere_to_the_same_weights(
    lab: Lab, tmp_path: Path, undisturbed: dict[int, str]
) -> None:
    sweep = lab.sweep(tmp_path, "seed=1", EVERY_STEP)
    process = halted(tmp_path / "sweep/0")
    node = only_job(lab)["NodeList"]
    step_daemons = [int(pid) for pid in lab.call("pgrep", "-f", f"^slurmstepd: .{only_job(lab)['JobId']}[.]").split()]
    for victim in (int((lab.folder / f"pid/slurmd-{node}").read_text()), *step_daemons, process):
        os.kill(victim, signal.SIGKILL)
    code, errors = finish(sweep)
    assert code == 0, errors
    assert only_job(lab)["Restarts"] == "1"
    assert only_job(lab)["NodeList"] != node
    assert weights(tmp_path / "models") == undisturbed
