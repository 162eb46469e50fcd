"""The doors to a run: begin it, go on with it, or take part in it as one of several processes.

Several processes are started by `device.processes`, torchrun or SLURM. Of these one composes the config, or reads that
of the run to go on with, and tells the others.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

from trade_agent import safe_io
from trade_agent.config.load import from_snapshot, snapshot
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import StoppedError
from trade_agent.search.trial import StudyTrial
from trade_agent.training.checkpoint import FOLDER
from trade_agent.training.distributed import announce, announced, find_world, is_announced, is_worker
from trade_agent.training.launch import check_place, launch
from trade_agent.training.reference import ReferenceResult
from trade_agent.training.results import TrainingResult
from trade_agent.training.resume import RESULT, holds_run, stored_config, where_it_began
from trade_agent.training.run_log import run_log
from trade_agent.training.signals import has_starter
from trade_agent.training.unified_manager import UnifiedTrainingManager


def run_config(
    config: TrainingConfig,
    *,
    run_dir: Path,
    trial: StudyTrial | None = None,
    sweep: bool = False,
    quiet: bool = False,
) -> TrainingResult | ReferenceResult:
    """Train what the config asks for, in as many processes as it says, and print the line that names the result.

    sweep: other runs follow in this process. A signal that came too late to stop this one stops those.
    A run that was finished in this folder is not trained again: so a job that a batch system starts once more ends
    well.
    """
    if (run_dir / RESULT).exists() and holds_run(run_dir, config):
        return finished_result(run_dir)
    with run_log(run_dir):
        if is_worker():
            announce({"config": snapshot(config), "run_dir": str(run_dir), "folder": os.getcwd()})
            return _train(UnifiedTrainingManager(config, run_dir=run_dir, trial=trial, quiet=quiet))
        manager = UnifiedTrainingManager(config, run_dir=run_dir, trial=trial, quiet=quiet)
        if manager.processes == 1:
            result = _train(manager)
            if sweep and manager.stop.requested:
                manager.stop.raise_stopped()
            return result
        check_place(manager.processes)
        manager.begin()
        launch(config.device, manager.processes, run_dir)
    return read_result(run_dir)  # whose line the first worker has printed


def resume_run(run_dir: Path, *, quiet: bool = False) -> TrainingResult | ReferenceResult:
    """Go on with the run in a folder, in as many processes as it was begun with.

    Registered stages are found, the one under way goes on from its newest checkpoint, and a run that is finished is
    left as it is. Raises ConfigError where there is no run.
    """
    run_dir = run_dir.resolve()
    if (run_dir / RESULT).exists():
        return finished_result(run_dir)
    config = stored_config(run_dir)
    with where_it_began(run_dir):
        return run_config(config, run_dir=run_dir, quiet=quiet)


def join_run() -> None:
    """Take part in the run that the first process announces, as any other of its processes."""
    run = announced()
    if not run:
        find_world().leave()
        return
    with contextlib.chdir(run["folder"]):
        _train(UnifiedTrainingManager(from_snapshot(run["config"]), run_dir=Path(run["run_dir"]), quiet=True))


def _train(manager: UnifiedTrainingManager) -> TrainingResult | ReferenceResult:
    try:
        result = manager.run()
    except StoppedError as error:
        if manager.world.main and not has_starter():
            raise
        raise SystemExit(error.exit_code) from error  # the first one says so, or who started it
    if manager.world.main:
        print(result.headline)
    manager.world.leave()
    return result


def read_result(run_dir: Path) -> TrainingResult | ReferenceResult:
    """What another process has written to `result.json`."""
    values = safe_io.read_json(run_dir / RESULT)
    return TrainingResult(**values) if "model_id" in values else ReferenceResult(**values)


def finished_result(run_dir: Path) -> TrainingResult | ReferenceResult:
    """The result of a run that has ended, and say so; what a process that was killed then has left is removed."""
    result = read_result(run_dir)
    (run_dir / "error.json").unlink(missing_ok=True)
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    print(f"the run in {run_dir} is finished: nothing is left to do", file=sys.stderr)
    print(result.headline)
    call_off()
    return result


def call_off() -> None:
    """Tell the other processes, where there are some that wait to be told, that nothing is to be trained."""
    if is_worker() and not is_announced():
        announce({})
        find_world().leave()
