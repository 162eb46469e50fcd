"""`device.processes=N`: this process starts N workers of the same command, watches them, and starts them again together
when one dies. It is what `torchrun --nproc-per-node N train.py ...` does from outside.

The workers compose the config themselves, from the same overrides: no config, with what may be secret in it, is written
for them.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trade_agent import safe_io
from trade_agent.config.load import conf_dir
from trade_agent.config.quoting import quoted
from trade_agent.config.schema import DeviceConfig
from trade_agent.errors import ConfigError, StoppedError, TradeAgentError
from trade_agent.training.error_handler import TrainingErrorHandler
from trade_agent.training.resume import resume_command
from trade_agent.training.signals import EXIT_CODES

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

STOPPED = "stopped.json"  # a worker that stopped as it was told ends with 0, or it would be started again


def is_worker() -> bool:
    """Whether torchrun, `launch` or SLURM started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(device: DeviceConfig, run_dir: Path, arguments: Sequence[str]) -> None:
    """Run `train.py ARGUMENTS` in `device.processes` workers, until `result.json` is there.

    Raises ConfigError inside a job of the SLURM launcher, StoppedError where a signal ended the run, TradeAgentError
    where the workers failed more than `device.max_restarts` times.
    """
    if "SUBMITIT_EXECUTOR" in os.environ:  # SLURM starts them, and tells each of them what happens to the job
        raise ConfigError(
            f"device.processes={device.processes}: the processes of a job of hydra/launcher=slurm are its tasks",
            f"use hydra.launcher.tasks_per_node={device.processes}, and leave device.processes at 1",
        )
    # A restart must find no address of the workers before it (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(device.threads, 1)))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    (run_dir / STOPPED).unlink(missing_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=device.processes,
        run_id=run_dir.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        rdzv_configs={"timeout": int(device.timeout_seconds)},
        max_restarts=device.max_restarts,
        local_addr="127.0.0.1",
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
        logs_specs=DefaultLogsSpecs(),
    )
    resumed = any(argument.startswith("resume=") for argument in arguments)
    folder = [] if resumed else [f"hydra.run.dir={quoted(str(run_dir))}"]
    command = [str(conf_dir().parent / "train.py"), *arguments, *folder]
    try:
        with handlers_restored():
            elastic_launch(config, sys.executable)("-u", *command)
    except SignalException as error:
        raise stopped(run_dir, EXIT_CODES.get(error.sigval, 143), error.sigval.name) from error
    except ChildFailedError as error:
        raise lost_worker(run_dir, device.max_restarts + 1, *error.get_first_failure()) from error
    if (run_dir / STOPPED).exists():
        told = safe_io.read_json(run_dir / STOPPED)
        raise stopped(run_dir, told["exit_code"], told["signal"])


def lost_worker(run_dir: Path, times: int, rank: int, failure: "ProcessFailure") -> TradeAgentError:
    """The error of workers that failed too often. `error.json` is the failed worker's own, or says who was killed."""
    if failure.exitcode < 0:
        what, remedy = (
            f"worker {rank} was ended by {signal.Signals(-failure.exitcode).name}",
            "if memory was short, lower model.num_envs",
        )
    else:
        what, remedy = f"worker {rank} ended with exit code {failure.exitcode}", "see its message above"
    error = TradeAgentError(f"the workers failed {times} times: {what}", remedy)
    if failure.exitcode < 0 or not (run_dir / "error.json").exists():
        TrainingErrorHandler(run_dir, resume_command(run_dir), resumed=True).write(error)
    error.remedy = f"see {run_dir}/error.json; go on with: {resume_command(run_dir)}"
    return error


def stopped(run_dir: Path, exit_code: int, name: str) -> StoppedError:
    error = StoppedError(f"stopped by {name}", f"go on with: {resume_command(run_dir)}")
    error.exit_code = exit_code
    return error


@contextlib.contextmanager
def handlers_restored() -> Iterator[None]:
    """The agent sets handlers and leaves them: the next trial of a sweep, and Ctrl-C, want those from before."""
    before = {number: signal.getsignal(number) for number in (*EXIT_CODES, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def as_worker(run_dir: Path) -> Iterator[None]:
    """Around the work of one of several processes: torchrun's, that stopped as it was told, ends well and says so in a
    file."""
    try:
        yield
    except StoppedError as error:
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # a task of SLURM, which starts nothing again by itself
            raise
        if os.environ.get("RANK") == "0":
            name = error.message.removeprefix("stopped by ")
            safe_io.write_json(run_dir / STOPPED, {"exit_code": error.exit_code, "signal": name})
        raise SystemExit(0) from error
