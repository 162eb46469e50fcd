"""What `hydra/launcher=slurm` asks of SLURM and refuses, and what tasks know of each other; tests/cluster runs jobs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from trade_agent.config.load import compose_config
from trade_agent.errors import ConfigError
from trade_agent.safe_io.locks import locked
from trade_agent.slurm import cancel_noted_jobs, check_options, job_note, join_tasks, note_job
from trade_agent.training.launch import check_place

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"timeout_min": 60, "signal_delay_s": 60, "max_num_timeout": 0, "array_parallelism": 1}
OPTIONS |= {"nodes": 1, "tasks_per_node": 1}

SBATCH = '#!/bin/sh\ncp "$1" "$SCRIPT"\necho "sbatch: error: no such partition" >&2\nexit 1\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeout_min": 0}, "timeout_min=0 is below 1"),
        ({"signal_delay_s": 0}, "signal_delay_s=0 is below 1"),
        ({"array_parallelism": 0}, "array_parallelism=0 is below 1"),
        ({"max_num_timeout": -1}, "max_num_timeout is negative"),
        ({"timeout_min": 1}, "signal_delay_s=60 is no less than the time limit"),
        ({"nodes": 0}, "nodes=0 is below 1"),
        ({"tasks_per_node": 0}, "tasks_per_node=0 is below 1"),
    ],
)
def test_options_that_no_run_could_use_are_refused(change: dict[str, int], message: str) -> None:
    check_options(OPTIONS)
    with pytest.raises(ConfigError, match=message):
        check_options(OPTIONS | change)


def test_a_host_without_slurm_gets_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", f"paths.outputs={tmp_path / 'o'}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: hydra/launcher=slurm needs sbatch, which is not on the PATH; run it on a SLURM host"
    ]


def test_an_installation_without_the_extra_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(launchers, "submitit_slurm.yaml")  # what the extra adds
    with pytest.raises(ConfigError, match=r"^hydra/launcher=slurm needs an extra; pip install 'trade-agent\[slurm\]'$"):
        compose_config(["hydra/launcher=slurm"])


@pytest.mark.slow
def test_what_a_job_asks_for_is_in_its_script_and_a_refusal_is_one_line(tmp_path: Path) -> None:
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    asked = {"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 3, "mem_gb": 16, "timeout_min": 90}
    asked |= {"partition": "gpu", "account": "lab", "constraint": "a100"}
    command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", "stage=cnn_lstm"]
    command += [f"hydra.launcher.{name}={value}" for name, value in asked.items()]
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SCRIPT": str(tmp_path / "script"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2, done.stderr
    assert "SLURM refuses the job: " in done.stderr
    assert "no such partition" in done.stderr
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "script").read_text().splitlines()
    wanted = {
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=3",
        "mem=16GB",
        "time=90",
        "signal=USR2@60",
    }
    wanted |= {"partition=gpu", "account=lab", "constraint=a100"}
    assert wanted <= {line.removeprefix("#SBATCH --") for line in lines}


QUEUE = '#!/bin/sh\necho "$@" >> "$ASKED"\ncat "$REASON" >&2\ncat "$JOBS"\n[ ! -s "$REASON" ]\n'
CANCEL = '#!/bin/sh\necho "$@" >> "$CANCELLED"\n: > "$JOBS"\n'


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A squeue and a scancel: what squeue is ASKED, the JOBS that it knows, the REASON why it fails, the CANCELLED."""
    for name, text in (("squeue", QUEUE), ("scancel", CANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    files = {name: tmp_path / name.lower() for name in ("ASKED", "JOBS", "REASON", "CANCELLED")}
    for name, path in files.items():
        path.touch()
        monkeypatch.setenv(name, str(path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return files


def noted(tmp_path: Path, queue: dict[str, Path], logs: str) -> Path:
    """The note of job 12_3, and a queue in which a job of this number writes to the folder `logs`."""
    note = job_note(tmp_path / "sweep/3")
    note_job(note, "12_3", logs=f"{tmp_path}/sweep/", sweep=tmp_path / "alive")
    queue["JOBS"].write_text(f"{tmp_path / logs}/\n" if logs else "")
    return note


@pytest.mark.parametrize(("logs", "cancelled"), [("sweep", ["12_3"]), ("another", []), ("", [])])
def test_a_job_of_a_sweep_that_is_gone_is_cancelled_unless_its_number_is_that_of_another(
    tmp_path: Path, queue: dict[str, Path], logs: str, cancelled: list[str]
) -> None:
    """logs: the sweep in whose folder the job writes; empty where it has ended."""
    cancel_noted_jobs([job_note(tmp_path / "sweep/3")])  # there is none
    assert queue["ASKED"].read_text() == ""
    cancel_noted_jobs([noted(tmp_path, queue, logs)])
    assert queue["CANCELLED"].read_text().split() == cancelled
    assert "--jobs=12_3" in queue["ASKED"].read_text()


def test_a_sweep_that_is_alive_keeps_its_jobs(tmp_path: Path, queue: dict[str, Path]) -> None:
    note = noted(tmp_path, queue, "sweep")
    with locked(tmp_path / "alive", wait=False), pytest.raises(ConfigError, match="another sweep is at work"):
        cancel_noted_jobs([note])
    assert queue["CANCELLED"].read_text() == ""


def test_what_squeue_does_not_say_is_not_guessed(tmp_path: Path, queue: dict[str, Path]) -> None:
    note = noted(tmp_path, queue, "")
    queue["REASON"].write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(ConfigError, match="squeue does not say whether the job 12_3 has ended: .* Unable to contact"):
        cancel_noted_jobs([note])
    queue["REASON"].write_text("slurm_load_jobs error: Invalid job id specified\n")
    cancel_noted_jobs([note])  # it has been forgotten
    assert queue["CANCELLED"].read_text() == ""


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"job": "1"'])
def test_a_damaged_note_is_passed_over(
    tmp_path: Path, queue: dict[str, Path], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    note = noted(tmp_path, queue, "sweep")
    note.write_text(text)
    cancel_noted_jobs([note])
    assert queue["ASKED"].read_text() == ""
    assert f"{note} is no note of a job" in caplog.text


TORCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_tasks_of_a_job_know_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"JOB_ID": "30123", "NTASKS": "4", "PROCID": "3", "LOCALID": "1", "JOB_NUM_NODES": "2", "NODEID": "1"}
    for name, value in (own | {"JOB_NODELIST": "node[07-08]"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in TORCH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert join_tasks() == 3
    assert [os.environ[name] for name in TORCH] == ["3", "1", "4", "2", "node07", "20123"]
    os.environ["SLURM_PROCID"] = "0"
    assert join_tasks() == 0


def test_a_job_of_one_task_is_no_part_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_tasks() == 0
    assert "WORLD_SIZE" not in os.environ


def test_a_job_starts_no_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(3)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(ConfigError, match=r"use hydra.launcher.tasks_per_node=3"):
        check_place(3)
