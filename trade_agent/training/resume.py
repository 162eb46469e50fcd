"""Going on with a run that was stopped: which run a folder holds, and that only one process works in it."""

import contextlib
import dataclasses
import fcntl
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from trade_agent import safe_io
from trade_agent.config.load import content, from_snapshot
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import ConfigError


def resume_command(run_dir: Path) -> str:
    """The line that goes on with the run in a folder."""
    return f"python train.py resume={shlex.quote(str(run_dir))}"


def continued(config: TrainingConfig, run_dir: Path) -> TrainingConfig | None:
    """The config under the identity of the unfinished run in `run_dir`; None where there is none of this config.

    So a job that a batch system starts again in the same folder goes on, with the same command line.
    """
    if (run_dir / "result.json").exists() or not (run_dir / "config.json").is_file():
        return None
    stored = safe_io.read_json(run_dir / "config.json")
    own = safe_io.parse_json(safe_io.canonical_json(content(config)), name="the configuration")
    if any(stored.get(name) != value for name, value in own.items()):
        return None
    return dataclasses.replace(config, run_id=stored["run_id"])


def stored_config(run_dir: Path) -> TrainingConfig:
    """The config of the unfinished run in `run_dir`.

    Raises ConfigError where there is no such run, it is finished, or its config cannot be read back.
    """
    if not (run_dir / "config.json").is_file():
        raise ConfigError(f"resume={run_dir} is not the folder of a run", "name a folder that holds a config.json")
    if (run_dir / "result.json").exists():
        raise ConfigError(f"the run in {run_dir} is finished", "see its result.json")
    command = safe_io.read_json(run_dir / "run.json")["command"] if (run_dir / "run.json").is_file() else ""
    return dataclasses.replace(from_snapshot(safe_io.read_json(run_dir / "config.json")), command=command)


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the folder of a run for this process. Raises ConfigError when another one works in it.

    The system lets go of the lock when the process ends, however it ends; the descriptor is not handed to others.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(f"another process is at work in {run_dir}", "wait for it, or stop it") from error
    finally:
        os.close(descriptor)
