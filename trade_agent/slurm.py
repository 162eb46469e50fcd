"""The trials of a sweep as SLURM jobs: `python train.py -m hydra/launcher=slurm ...`.

Submission and waiting are submitit's, by way of hydra-submitit-launcher. Ours is what becomes of a job that is killed,
cancelled or refused: a failed trial and one line, where theirs ends the sweep. The tasks of a job, on one node or on
several, are the processes that train its model together.
"""

import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from omegaconf import open_dict, read_write

from trade_agent import safe_io
from trade_agent.console import exit_code_of
from trade_agent.errors import ConfigError, JobError, PeerLostError, TradeAgentError
from trade_agent.safe_io import locks
from trade_agent.training.signals import EX_TEMPFAIL

log = logging.getLogger(__name__)

# Read by submitit when the executor is made; everything else belongs to the job.
EXECUTOR_OPTIONS = ("max_num_timeout", "python")
# Known to every executor of submitit; the rest is SLURM's own and has its name in front.
SHARED_OPTIONS = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
SHARED_OPTIONS |= {"stderr_to_stdout"}
NOTES = ".jobs"  # beside the folders of runs: which job was submitted for each
CANCEL_SECONDS = 600  # that cancelled jobs have to end; SLURM kills them much earlier


class SlurmLauncher(submitit_launcher.SlurmLauncher):  # type: ignore[misc]
    """Submits the trials of a batch as one job array and waits for all of them.

    A job that its time limit or a preemption ends goes back into the queue and on with its run in the same folder.
    """

    def __call__(self, sweep_overrides: list[str], *arguments: Any) -> JobReturn:
        """One task of a job, in the job: the first one composes the config, the others join it.

        Where another task is lost it ends without a result: whether the job is a failed trial, or starts again because
        a node died, is for SLURM to say.
        """
        if join_tasks() > 0:
            return joined()
        returned = super().__call__(sweep_overrides, *arguments)
        if returned.status == JobStatus.FAILED:
            from trade_agent.training.runs import call_off

            call_off()
        if isinstance(returned._return_value, PeerLostError):
            raise SystemExit(EX_TEMPFAIL)
        return returned

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """One result for each trial, in their order; FAILED where a job ended without one.

        Raises ConfigError where SLURM is absent or refuses the job, and where another sweep is at work in the same
        folders. Who interrupts the sweep cancels its jobs; those of one that was killed are cancelled by the next one
        that trains in the same folders.
        """
        check_options(self.params)
        if shutil.which("sbatch") is None:
            raise ConfigError("hydra/launcher=slurm needs sbatch, which is not on the PATH", "run it on a SLURM host")
        folder = self._sweep_folder()
        calls = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        notes = [
            job_note(self._run_folder(overrides, number))
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        cancel_noted_jobs(notes)
        alive = folder / NOTES / f"{uuid.uuid4().hex}.lock"
        with locks.locked(alive, wait=False):
            try:
                return self._submit(folder, calls, notes, alive)
            finally:
                alive.unlink()

    def _submit(
        self, folder: Path, calls: Sequence[tuple[Any, ...]], notes: Sequence[Path], alive: Path
    ) -> list[JobReturn]:
        """Submit the jobs, note them, and wait for their results. alive: the lock of this sweep."""
        from submitit.core.utils import FailedJobError

        executor = self._executor(folder)
        try:
            jobs = executor.map_array(self, *zip(*calls, strict=True))
        except FailedJobError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"SLURM refuses the job: {reason}", "see hydra.launcher in --cfg hydra") from error
        log.info(f"submitted {len(jobs)} jobs, {jobs[0].job_id} to {jobs[-1].job_id}, runs and logs in {folder}")
        try:
            for note, job in zip(notes, jobs, strict=True):
                note_job(note, job.job_id, logs=str(executor.folder).partition("%")[0], sweep=alive)
            return [result_of(job) for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise

    def _sweep_folder(self) -> Path:
        """The folder of the sweep, fixed here: a job that starts again must not read another time from the clock."""
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir).absolute()
        with read_write(self.config.hydra):
            self.config.hydra.sweep.dir = str(folder)
        return folder

    def _run_folder(self, overrides: Sequence[str], number: int) -> Path:
        """The folder of a trial, as its job will find it."""
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config.hydra.job):
            config.hydra.job.num, config.hydra.job.id = number, f"job_id_for_{number}"
        return Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir)).absolute()

    def _executor(self, folder: Path) -> Any:
        import submitit

        made = {f"slurm_{name}": self.params[name] for name in EXECUTOR_OPTIONS}
        executor = submitit.AutoExecutor(folder=folder / self.params["submitit_folder"], cluster="slurm", **made)
        job = {name: value for name, value in self.params.items() if name not in (*EXECUTOR_OPTIONS, "submitit_folder")}
        executor.update_parameters(
            **{name if name in SHARED_OPTIONS else f"slurm_{name}": value for name, value in job.items()}
        )
        return executor


def check_options(options: dict[str, Any]) -> None:
    """Raises ConfigError for what SLURM would take and the run could not use."""
    for name in ("timeout_min", "signal_delay_s", "array_parallelism", "nodes", "tasks_per_node"):
        if options[name] < 1:
            raise ConfigError(f"hydra.launcher.{name}={options[name]} is below 1", f"set hydra.launcher.{name}")
    if options["max_num_timeout"] < 0:
        raise ConfigError("hydra.launcher.max_num_timeout is negative", "set how often a job may be queued again")
    if options["signal_delay_s"] >= 60 * options["timeout_min"]:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={options['signal_delay_s']} is no less than the time limit of the job",
            "raise hydra.launcher.timeout_min",
        )


def join_tasks() -> int:
    """Tell torch which of the job's tasks this process is. Returns its rank."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        os.environ |= {
            "RANK": str(job.global_rank),
            "LOCAL_RANK": str(job.local_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
            "MASTER_ADDR": job.hostnames[0],
            # Below the ports that a system hands out by itself; jobs of a host have numbers that follow each other.
            "MASTER_PORT": str(20_000 + int(job.raw_job_id) % 10_000),
        }
    return int(job.global_rank)


def joined() -> JobReturn:
    """The work of a task that is not the first of its job."""
    from trade_agent.training.runs import join_run

    code = exit_code_of(join_run)
    if code:
        raise SystemExit(EX_TEMPFAIL if code == PeerLostError.exit_code else code)
    done = JobReturn()
    done.status = JobStatus.COMPLETED
    return done


def job_note(run: Path) -> Path:
    """Where it is noted which job a sweep has submitted for a run: beside its folder, which the job itself makes."""
    return run.parent / NOTES / f"{run.name}.json"


def note_job(note: Path, job: str, *, logs: str, sweep: Path) -> None:
    """Note it for the next sweep. logs: how the paths of its logs begin. sweep: the lock of the sweep that waits for
    it."""
    note.parent.mkdir(parents=True, exist_ok=True)
    safe_io.write_json(note, {"job": job, "logs": logs, "sweep": str(sweep)}, durable=False)


def read_note(note: Path) -> dict[str, str] | None:
    """What was noted; None, and a line in the log, where the file is damaged."""
    try:
        noted = safe_io.read_json(note)
        return {name: str(noted[name]) for name in ("job", "logs", "sweep")}
    except (TradeAgentError, KeyError, TypeError) as error:
        log.warning(f"{note} is no note of a job, and passed over: {error}")
        return None


def cancel_noted_jobs(notes: Sequence[Path]) -> None:
    """Cancel the jobs that a sweep which is gone has left, waiting or at work, and wait until they have ended.

    They would be at work in the folders of their runs when the next jobs for these start. Nobody waits for what comes
    of them, and the next ones go on from their last checkpoints.

    Raises ConfigError, with nothing cancelled, where their sweep is alive or SLURM does not answer; and where they do
    not end.
    """
    noted = [read for note in notes if note.is_file() and (read := read_note(note))]
    left = [each for each in noted if in_queue(each["job"], each["logs"])]
    if not left:
        return
    jobs = ", ".join(each["job"] for each in left)
    if any(locks.held(Path(each["sweep"])) for each in left):
        raise ConfigError(
            f"another sweep is at work in the same folders: it waits for the jobs {jobs}",
            "wait for it, stop it, or train elsewhere: hydra.sweep.dir=FOLDER",
        )
    log.warning(
        f"the jobs {jobs} of a sweep that is gone are cancelled; when they have ended, others go on with the runs"
    )
    subprocess.run(["scancel", *(each["job"] for each in left)], check=False)
    started = time.monotonic()
    while any(in_queue(each["job"], each["logs"]) for each in left):
        if time.monotonic() - started > CANCEL_SECONDS:
            raise ConfigError(f"the jobs {jobs} were cancelled and do not end", "see squeue, and scancel them")
        time.sleep(1.0)


def in_queue(job: str, logs: str) -> bool:
    """Whether a job waits or is at work. Numbers are given anew: the one meant is that with these logs.

    Raises ConfigError where SLURM does not say.
    """
    command = ["squeue", "--noheader", f"--jobs={job}", f"--Format=STDERR:{len(os.fsencode(logs))}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ConfigError(f"squeue does not say whether the job {job} has ended: {reason}", "try again when it does")
    return logs in done.stdout.splitlines()


def result_of(job: Any) -> JobReturn:
    """What the first task of a submitit job returned, once it has ended; a failed trial where it was killed, cancelled
    or lost."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job = job.task(0)
    try:
        return job.results()[0]
    except (FailedJobError, UncompletedJobError):
        failed = JobReturn()
        failed.status = JobStatus.FAILED
        failed.return_value = JobError(
            f"SLURM job {job.job_id} ended without a result (state {job.state})", f"see {job.paths.stderr}"
        )
        return failed
