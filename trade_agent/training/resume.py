"""Going on with a run that was stopped: which run a folder holds, and that only one process works in it."""

import contextlib
import dataclasses
import errno
import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.config.load import FREE_SETTINGS, content, from_snapshot, leaves, snapshot, with_run_id
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import ConfigError, DataError
from trade_agent.registry.metadata import check_config
from trade_agent.safe_io import locks

CONFIG, RESULT = "config.json", "result.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a disk says that has none


def default_run_dir(config: TrainingConfig) -> Path:
    return Path(config.paths.outputs) / config.stage.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def resume_command(run_dir: Path) -> str:
    """The line that goes on with the run in a folder, from any other one, in as many processes as it has."""
    return f"python train.py resume={shlex.quote(str(run_dir.resolve()))}"


def write_run(run_dir: Path, config: TrainingConfig, *, about: dict[str, Any]) -> None:
    """What a run is, before it starts: `config.json`, and `run.json` with command, folder and `about`: processes,
    study, versions, plan and data.

    A run that goes on keeps what is there. Once `run.json` is there, the run has begun.
    """
    if stored_run(run_dir).get("run_id") != config.run_id:
        own = {"run_id": config.run_id, "command": config.command, "folder": os.getcwd()}
        write_config(run_dir, config)
        safe_io.write_json(run_dir / "run.json", own | about)


def write_config(run_dir: Path, config: TrainingConfig) -> None:
    """What `resume=` reads."""
    safe_io.write_json(run_dir / CONFIG, snapshot(config))


def stored_run(run_dir: Path) -> dict[str, Any]:
    """`run.json` of a folder; empty where none was begun there."""
    path = run_dir / "run.json"
    return _read_object(path) if path.is_file() else {}


def _read_object(path: Path) -> dict[str, Any]:
    """Values of a JSON file; ConfigError where it holds something else."""
    values = safe_io.read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not what a run writes", "begin a new run in another folder")
    return values


def _read_config(run_dir: Path) -> dict[str, Any]:
    """`config.json`, which must not name code or an interpolation: it is merged into a config."""
    path = run_dir / CONFIG
    values = _read_object(path)
    check_config(values, name=str(path))
    return values


def require_same_data(run: dict[str, Any], fingerprint: str) -> None:
    """Raise DataError when a run began on other data: what it has learned so far does not belong to these."""
    before = run.get("data", {}).get("fingerprint", fingerprint)
    if before != fingerprint:
        raise DataError(
            f"the data have changed since the run began: fingerprint {fingerprint[:12]}, then {before[:12]}",
            "restore the file, or begin a new run",
        )


@contextlib.contextmanager
def where_it_began(run_dir: Path) -> Iterator[None]:
    """Work in the folder where a run was started: its relative paths (models, data) count from there."""
    folder = stored_run(run_dir).get("folder", os.getcwd())
    if not os.path.isdir(folder):
        raise ConfigError(
            f"the run was started in {folder}, which is gone, and its relative paths count from there",
            "put that folder back, with the models and the data of the run",
        )
    with contextlib.chdir(folder):
        yield


def continued(config: TrainingConfig, run_dir: Path) -> TrainingConfig:
    """The config under the identity of the unfinished run in `run_dir`, or of a new run where there is none.

    So a job that a batch system starts again in the same folder goes on, with the same command line. Raises ConfigError
    where another run is there, or one that is finished.
    """
    if not (run_dir / CONFIG).is_file():
        return with_run_id(config)
    differing = _differing(config, run_dir)
    if differing or (run_dir / RESULT).exists():
        what = f"another run (with another {', '.join(differing[:3])})" if differing else "a run that is finished"
        raise ConfigError(f"{run_dir} holds {what}", "name another folder: hydra.run.dir=FOLDER")
    return dataclasses.replace(config, run_id=_read_config(run_dir)["run_id"])


def holds_run(run_dir: Path, config: TrainingConfig) -> bool:
    """Whether a run of this config was begun in `run_dir`, finished or not."""
    return (run_dir / CONFIG).is_file() and not _differing(config, run_dir)


def _differing(config: TrainingConfig, run_dir: Path) -> list[str]:
    """Dotted names of what the run in `run_dir` has otherwise."""
    own = safe_io.parse_json(safe_io.canonical_json(content(config)), name="the configuration")
    stored = {name: value for name, value in _read_config(run_dir).items() if name in own}
    ours, theirs = dict(leaves(own)), dict(leaves(stored))
    missing = object()
    names = (ours.keys() | theirs.keys()) - set(FREE_SETTINGS)
    return sorted(name for name in names if ours.get(name, missing) != theirs.get(name, missing))


def stored_config(run_dir: Path) -> TrainingConfig:
    """The config of the run in `run_dir`. Raises ConfigError where there is none, or it cannot be read back."""
    if not (run_dir / CONFIG).is_file():
        raise ConfigError(f"resume={run_dir} is not the folder of a run", "name a folder that holds a config.json")
    try:
        config = from_snapshot(_read_config(run_dir))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{run_dir / CONFIG} is not what a run writes: {error!r}", "begin a new run in another folder"
        ) from error
    return dataclasses.replace(config, command=stored_run(run_dir).get("command", ""))


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the folder of a run for this process. Raises ConfigError when another one works in it."""
    with contextlib.ExitStack() as own:
        try:
            own.enter_context(locks.locked(run_dir / locks.RUN, wait=False))
        except BlockingIOError as error:
            raise ConfigError(f"another process is at work in {run_dir}", "wait for it, or stop it") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            reason = f"{run_dir} cannot be locked: {error.strerror}"
            raise ConfigError(reason, "use a folder on a disk that has file locks") from error
        yield
