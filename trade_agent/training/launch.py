"""`device.processes=N`: this process starts N workers of one run, and starts them again together when one dies.

Each of them is `train.py resume=FOLDER`, on a run that was begun here: what is wrong with the input shows before, once.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trade_agent.config.load import conf_dir
from trade_agent.config.schema import DeviceConfig
from trade_agent.errors import ConfigError, PeerLostError, TradeAgentError
from trade_agent.training.checkpoint import stage_under_way
from trade_agent.training.device import threads_of_each
from trade_agent.training.error_handler import TrainingErrorHandler
from trade_agent.training.resume import resume_command
from trade_agent.training.signals import EXIT_CODES, PARENT, StopFlag, stop_on_signals


def check_place(processes: int) -> None:
    """Raises ConfigError inside a job of the SLURM launcher, whose tasks are the processes."""
    if "SUBMITIT_EXECUTOR" in os.environ:  # SLURM starts them, and tells each of them what happens to the job
        raise ConfigError(
            f"device.processes={processes}: the processes of a job of hydra/launcher=slurm are its tasks",
            f"use hydra.launcher.tasks_per_node={processes}, and leave device.processes at 1",
        )


def launch(device: DeviceConfig, processes: int, run_dir: Path) -> None:
    """Train the run that was begun in `run_dir` in several workers, until its `result.json` is there.

    Only who may do better next time starts again: a worker that a signal killed, and those that lost another one.
    Raises StoppedError where a signal ended the run, TradeAgentError where a worker failed by itself, or workers were
    lost more than `device.max_restarts` times.
    """
    # A restart must find no address of the workers before it (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[PARENT] = str(os.getpid())
    flag = StopFlag(resume_command(run_dir))
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads_of_each(device.threads, processes)}
    with stop_on_signals(flag), variables(threads):
        for left in reversed(range(device.max_restarts + 1)):
            failures = start_workers(device, processes, run_dir, flag)
            if not failures:
                return
            for number, code in EXIT_CODES.items():
                if code in failures.values():
                    flag.raise_stopped(number)
            if flag.requested:  # before the agent, or behind it
                flag.raise_stopped()
            rank, code = first_cause(failures)
            if (code > 0 and code != PeerLostError.exit_code) or not left:
                raise failed_worker(run_dir, rank, code)
            print(f"{ending(rank, code)}: all start again from the last checkpoint", file=sys.stderr)


def start_workers(device: DeviceConfig, processes: int, run_dir: Path, flag: StopFlag) -> dict[int, int]:
    """Start the workers once, and wait for them. Returns the exit codes of those that failed, by rank: below zero the
    signal that killed it."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    command = [str(conf_dir().parent / "train.py"), f"resume={run_dir.resolve()}"]
    with tempfile.TemporaryDirectory() as logs, handlers_restored():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=run_dir.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            rdzv_configs={"timeout": int(device.timeout_seconds)},
            max_restarts=0,
            local_addr="127.0.0.1",
            signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except SignalException as error:
            flag.raise_stopped(error.sigval)
        except ChildFailedError as error:
            return {rank: failure.exitcode for rank, failure in error.failures.items()}
    return {}


def first_cause(failures: dict[int, int]) -> tuple[int, int]:
    """Rank and exit code of the worker that failed by itself, not of one that lost it or was stopped for it."""
    own = {rank: code for rank, code in failures.items() if code not in (-signal.SIGTERM, PeerLostError.exit_code)}
    return min((own or failures).items())


def ending(rank: int, code: int) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"worker {rank} {how}"


def failed_worker(run_dir: Path, rank: int, code: int) -> TradeAgentError:
    """The error of a run whose workers failed. `error.json` is the failed worker's own, or says who was killed."""
    error = TradeAgentError(ending(rank, code))
    if code < 0:  # it had no time to say what happened
        error.remedy = "if memory was short, lower model.num_envs"
        handler = TrainingErrorHandler(run_dir, resumed=True)
        handler.stage = stage_under_way(run_dir) or handler.stage
        handler.write(error)
    seen = f"see {run_dir}/error.json" if (run_dir / "error.json").exists() else "see its message above"
    error.remedy = f"{seen}; go on with: {resume_command(run_dir)}"
    return error


@contextlib.contextmanager
def variables(values: dict[str, int]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile."""
    os.environ |= {name: str(value) for name, value in values.items()}
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


@contextlib.contextmanager
def handlers_restored() -> Iterator[None]:
    """The agent sets handlers and leaves them: the next trial of a sweep, and Ctrl-C, want those from before."""
    before = {number: signal.getsignal(number) for number in (*EXIT_CODES, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
