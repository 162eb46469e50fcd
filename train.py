"""The Hydra door: `python train.py stage=hybrid model=sac [key=value ...]`, `-m` for sweeps, `resume=FOLDER`."""

import os
import sys
from pathlib import Path
from typing import Any

from trade_agent.training.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take long
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through to `exit_code_of`, which prints them in one line

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trade_agent.config.load import default_command, load_config
from trade_agent.config.store import register_schemas
from trade_agent.console import exit_code_of, hydra_job
from trade_agent.errors import ConfigError, StoppedError, TrialPrunedError
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
        overrides = [str(each) for each in OmegaConf.to_container(job.overrides.task, resolve=False) or []]
        config = load_config(cfg, default_command(overrides))
        from trade_agent.training.runs import run_config  # imports torch: not for --help

        trial = trial_of(job) if job.mode == RunMode.MULTIRUN and "study_name" in job.sweeper else None
        try:
            result = run_config(config, run_dir=run_dir, trial=trial, sweep=job.mode == RunMode.MULTIRUN)
            return result.validation
        except TrialPrunedError as pruned:
            print(pruned)
            return None
        except StoppedError as stopped:
            if trial is not None:
                stopped.remedy = ""  # the sweep says how the search goes on, and this run with it
            raise


def trial_of(job: Any) -> Any:
    """The trial of the study that this job is."""
    from trade_agent.search.pruners import make_pruner
    from trade_agent.search.trial import StudyTrial

    sweeper = job.sweeper
    return StudyTrial(
        sweeper.storage,
        sweeper.study_name,
        job.runtime.output_dir,
        pruner=make_pruner(sweeper.pruner, startup_trials=sweeper.pruner_startup_trials),
        warmup_checks=sweeper.pruner_warmup_checks,
    )


def main() -> None:
    arguments = sys.argv[1:]
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if folders and len(arguments) > 1:
        raise ConfigError("resume= takes everything from the folder of the run", "leave the other arguments away")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if os.environ["RANK"] != "0":  # the first of the processes tells what is to be trained
            from trade_agent.training.runs import join_run

            join_run()
            return
        sys.argv += arguments_under_torchrun(arguments)
    if folders:  # config and identity come from the folder: Hydra has nothing to compose
        from trade_agent.training.runs import resume_run

        resume_run(Path(folders[0]))
        return
    run()


def arguments_under_torchrun(arguments: list[str]) -> list[str]:
    """What the first of torchrun's workers needs besides its own arguments: the same folder after a restart.

    Raises ConfigError for a sweep, of which each worker would draw its own trials, and where restarts are asked for in
    a form in which they cannot go on.
    """
    size = os.environ["WORLD_SIZE"]
    sweeps = [argument for argument in arguments if asks_for_sweep(argument)]
    if sweeps:
        rest = " ".join(argument for argument in arguments if argument not in sweeps)
        raise ConfigError(
            "a sweep under torchrun would train every worker on trials of its own",
            f"use: python train.py -m device.processes={size} {rest}",
        )
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            "a restart of torchrun would look for the processes that died (pytorch issue 135712)",
            f"use: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --max-restarts {restarts} "
            f"--nproc-per-node {size} train.py ..., or: python train.py device.processes={size} ...",
        )
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if any(argument.startswith(("hydra.run.dir=", "resume=")) for argument in arguments):
        return []
    if run_id == "none" and restarts != "0":
        raise ConfigError("a restart of torchrun would begin another run", "add --rdzv-id NAME before train.py")
    if run_id == "none":
        return []
    return [f"hydra.run.dir='${{paths.outputs}}/${{stage.name}}/torchrun-{run_id}'"]


def asks_for_sweep(argument: str) -> bool:
    """In any of the spellings that Hydra takes: `--multi` is short for `--multirun`."""
    shortened = argument.startswith("--mu") and "--multirun".startswith(argument)
    return argument == "-m" or shortened or argument.lower() == "hydra.mode=multirun"


def worker_exit_code() -> int:
    """Of one of several processes, whatever ends it."""
    try:
        return exit_code_of(main)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


if __name__ == "__main__":
    if "RANK" not in os.environ:
        sys.exit(exit_code_of(main))
    code = worker_exit_code()
    if code == 0:
        sys.exit()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: while Python cleans up, the threads of a lost connection may abort it, which would look like a crash,
    # and others may notice and end before this one, which is the cause.
    os._exit(code)
