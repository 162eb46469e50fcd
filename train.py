"""The Hydra door: `python train.py stage=hybrid model=sac [key=value ...]`, `-m` for sweeps, `resume=FOLDER`."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through to `exit_code_of`, which prints them in one line

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trade_agent.config.load import default_command, load_config
from trade_agent.config.store import register_schemas
from trade_agent.console import exit_code_of, hydra_job
from trade_agent.errors import ConfigError, TrialPrunedError
from trade_agent.launchers import register_launchers
from trade_agent.search.sweeper import register_sweeper

register_schemas()
register_sweeper()
register_launchers()


@hydra.main(config_path="conf", config_name="train")
def run(cfg: DictConfig) -> dict[str, float] | None:
    """Train; returns the figures on validation rows, by which a search goes, or None where the trial was pruned."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    with hydra_job(run_dir, sweep=job.mode == RunMode.MULTIRUN):
        # Unresolved: `${oc.env:TOKEN}` stays what was typed, and the token stays out of every file.
        overrides = list(OmegaConf.to_container(job.overrides.task, resolve=False) or [])
        config = load_config(cfg, default_command([str(override) for override in overrides]))
        from trade_agent.training.unified_manager import UnifiedTrainingManager  # imports torch: not for --help

        trial = trial_of(job) if job.mode == RunMode.MULTIRUN and "study_name" in job.sweeper else None
        try:
            result = UnifiedTrainingManager(config, run_dir=run_dir, trial=trial).run()
        except TrialPrunedError as pruned:
            print(pruned)
            return None
    print(result.headline)
    return result.validation


def trial_of(job: Any) -> Any:
    """The trial of the study that this job is."""
    from trade_agent.search.trial import StudyTrial, job_name, make_pruner

    sweeper = job.sweeper
    pruner = make_pruner(
        sweeper.pruner, startup_trials=sweeper.pruner_startup_trials, warmup_checks=sweeper.pruner_warmup_checks
    )
    return StudyTrial(sweeper.storage, sweeper.study_name, job_name(job.sweep.dir, job.job.num), pruner=pruner)


def resume(folder: str) -> None:
    """`python train.py resume=FOLDER`: config and identity come from the folder, so Hydra has nothing to compose."""
    from trade_agent.training.unified_manager import resume_run

    print(resume_run(Path(folder)).headline)


def main() -> None:
    folders = [argument.removeprefix("resume=") for argument in sys.argv[1:] if argument.startswith("resume=")]
    if folders and len(sys.argv) > 2:
        raise ConfigError("resume= takes everything from the folder of the run", "leave the other arguments away")
    if folders:
        resume(folders[0])
    else:
        run()


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
