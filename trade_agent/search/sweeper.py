"""`hydra/sweeper=study`: an Optuna study over Hydra jobs, which any number of sweeps may work on at once.

The search space and the samplers are those of hydra-optuna-sweeper. What it lacks is here: a journal as storage,
trials that were pruned by their own job, constraints, the defaults as first trial, and failures that end nothing.

Imported whenever train.py starts, so what needs Optuna is imported only where a sweep begins.
"""

import contextlib
import io
import logging
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig, OmegaConf

from trade_agent import safe_io
from trade_agent.config.check import check_value
from trade_agent.config.load import FREE_SETTINGS, leaves
from trade_agent.config.quoting import quoted
from trade_agent.config.schema import SearchConfig
from trade_agent.errors import ConfigError, TradeAgentError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

    from trade_agent.search.sweeps import Sweeps

log = logging.getLogger(__name__)
# What is no matter of a run: where it lies, and how it goes on.
APART = (
    *("hydra.", "paths.", "registry.", "monitoring.", "tags", "notes", "run_id", "command", "hidden"),
    *FREE_SETTINGS,
)
PROCESSES = ("hydra.launcher.nodes", "hydra.launcher.tasks_per_node")
# What a run keeps to, and the trials of a study need not have in common.
OWN = ("hydra.", "device.", "upstream.missing")
RUN = "run"  # user attribute of a trial: digest of the settings that its run keeps to
VALIDATION = "validation"  # user attribute of a trial: all validation metrics of the kept state


def register_sweeper() -> None:
    """Make the sweeper known to Hydra. Calling it again changes nothing."""
    Plugins.instance().register(StudySweeper)


class StudySweeper(OptunaSweeper):
    """Asks the study for trials, launches them, tells it what came of them, until the study has had `n_trials`."""

    def __init__(
        self,
        *,
        sampler: Any,
        storage: str,
        study_name: str,
        objectives: Mapping[str, str],
        at_most: Mapping[str, float],
        at_least: Mapping[str, float],
        n_trials: int,
        n_jobs: int,
        defaults_first: bool,
        max_failures_in_a_row: int,
        max_restarts: int,
        pruner: str,
        pruner_startup_trials: int,
        pruner_warmup_checks: int,
        params: DictConfig,
    ) -> None:
        check_options(objectives, locals())
        super().__init__(
            sampler=sampler,
            direction=list(objectives.values()),
            storage=storage,
            study_name=study_name,
            n_trials=n_trials,
            n_jobs=n_jobs,
            max_failure_rate=1.0,
            custom_search_space=None,
            params=params,
        )
        from trade_agent.search.pruners import make_pruner

        self.storage, self.study_name, self.n_trials, self.n_jobs = storage, study_name, n_trials, n_jobs
        self.objectives, self.at_most, self.at_least = dict(objectives), dict(at_most), dict(at_least)
        self.defaults_first, self.max_restarts = defaults_first, max_restarts
        self.max_failures_in_a_row = max_failures_in_a_row
        self.pruner = make_pruner(pruner, startup_trials=pruner_startup_trials)
        self.failures_in_a_row = 0

    def sweep(self, arguments: list[str]) -> None:
        """Raises ConfigError where the study is one of other trials, and the error of a trial where the search itself
        is wrong: input that the config as it stands does not accept, or `max_failures_in_a_row`."""
        from trade_agent.search.studies import create_study, enqueue_defaults, keep_settings, open_storage
        from trade_agent.search.summary import best_lines, state_counts, write_summary
        from trade_agent.search.sweeps import Sweeps

        config = self.sweeper.config
        assert config is not None
        space, fixed, fixed_overrides = self._space(arguments)
        with Sweeps(self.storage, Path(config.paths.outputs)) as sweeps:
            with sweeps.asking():
                study = create_study(
                    open_storage(self.storage),
                    self.study_name,
                    objectives=self.objectives,
                    sampler=self.sweeper.sampler,
                    pruner=self.pruner,
                )
                settings = settings_of(config, space)
                keep_settings(study, {name: settings[name] for name in settings if not name.startswith(OWN)}, space)
                if self.defaults_first:
                    enqueue_defaults(study, default_values(config, space))
            run = safe_io.sha256_bytes(safe_io.canonical_json(settings))
            while trials := self._ask(study, sweeps, run):
                chosen = self.sweeper._configure_trials(trials, space, fixed, fixed_overrides)
                overrides = [(*items, *in_folder(trial)) for items, trial in zip(chosen, trials, strict=True)]
                self._launch(study, trials, overrides)
        folder = Path(config.hydra.sweep.dir) / "summary"
        summary = write_summary(study, folder)
        print(f"study {self.study_name}: {state_counts(summary)}; pictures and table in {folder}")
        print(*best_lines(summary), sep="\n")

    def _space(self, arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """Distributions of what is searched, values of what the command line fixes, deletions."""
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        self.sweeper._process_searchspace_config()
        space, fixed, deletions = create_params_from_overrides(
            [
                *self.sweeper._parse_sweeper_params_config(),
                *arguments,
            ]
        )
        return {name: values for name, values in space.items() if name not in fixed}, fixed, deletions

    def _ask(self, study: "Study", sweeps: "Sweeps", run: str) -> "list[Trial]":
        """The next trials, at most `n_jobs`, each with a folder; none when the study has had all of them.

        run: digest of the settings of runs; one that was begun with others cannot go on, and begins anew.
        """
        from trade_agent.search.studies import counted
        from trade_agent.search.sweeps import FOLDER, SWEEP, put_back_dead

        with sweeps.asking():  # between counting and asking nobody else may ask
            for line in put_back_dead(study, sweeps, max_restarts=self.max_restarts):
                log.warning(line)
            left = self.n_trials - len(counted(study))
            trials = [study.ask() for _ in range(min(left, self.n_jobs))]
            for trial in trials:
                trial.set_user_attr(SWEEP, sweeps.own)
                if trial.user_attrs.get(RUN) != run or not os.path.isdir(trial.user_attrs[FOLDER]):
                    folder = os.path.join(self.sweeper.sweep_dir, str(trial.number))
                    trial.set_user_attr(FOLDER, os.path.abspath(folder))
                    trial.set_user_attr(RUN, run)
        return trials

    def _launch(self, study: "Study", trials: "list[Trial]", overrides: Sequence[Sequence[str]]) -> None:
        from trade_agent.search.summary import from_here
        from trade_agent.search.sweeps import FOLDER, put_back

        for trial in trials:
            print(f"trial {trial.number} of {self.n_trials} in {from_here(trial.user_attrs[FOLDER])}")
        assert self.sweeper.launcher is not None
        try:
            returns = self.sweeper.launcher.launch(overrides, initial_job_idx=self.sweeper.job_idx)
        except BaseException as error:  # stopped, or the launcher itself failed
            for trial in trials:
                put_back(study, trial)
            if not isinstance(error, Exception):
                command = shlex.join(["python", "train.py", *sys.argv[1:]])
                # Printed: of the loggers one that was stopped in a job has left only those of the job.
                print(
                    f"the search, and the trial under way from its checkpoint, go on with: {command}", file=sys.stderr
                )
            raise
        self.sweeper.job_idx += len(returns)
        errors = [self._tell(study, trial, returned) for trial, returned in zip(trials, returns, strict=True)]
        for fatal in filter(None, errors):
            raise fatal

    def _tell(self, study: "Study", trial: "Trial", returned: Any) -> Exception | None:
        """Hand the outcome of a job to the study: validation metrics, None where it was pruned, or its error.

        Returns the error where the search is to end with it.
        """
        from optuna.trial import TrialState

        from trade_agent.search.studies import DEFAULTS

        try:
            with contextlib.redirect_stderr(io.StringIO()):  # Hydra would repeat the overrides of a failed job
                metrics = returned.return_value
            if metrics is None:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                trial.set_user_attr(VALIDATION, metrics)
                for name, value in violations(metrics, self.at_most, self.at_least).items():
                    trial.set_constraint(name, value)
                study.tell(trial, [wanted(metrics, name) for name in self.objectives])
            self.failures_in_a_row = 0
        except Exception as error:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            self.failures_in_a_row += 1
            log.warning(f"trial {trial.number} failed: {error}")
            wrong_input = isinstance(error, TradeAgentError) and error.exit_code == 2
            if (wrong_input and DEFAULTS in trial.user_attrs) or self.failures_in_a_row >= self.max_failures_in_a_row:
                return error
        return None


def in_folder(trial: "Trial") -> tuple[str, str]:
    """What lets Hydra run a trial in its folder."""
    from trade_agent.search.sweeps import FOLDER

    parent, name = os.path.split(trial.user_attrs[FOLDER])
    return f"hydra.sweep.dir={quoted(parent)}", f"hydra.sweep.subdir={quoted(name)}"


def check_options(objectives: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the option of the sweeper that is out of range."""
    if not objectives:
        raise ConfigError("hydra.sweeper.objectives is empty", "name a validation metric: {sharpe: maximize}")
    for name, way in objectives.items():
        check_value(f"hydra.sweeper.objectives.{name}", way, {"options": ("minimize", "maximize")})
    for item in fields(SearchConfig):
        if item.name in options:
            check_value(f"hydra.sweeper.{item.name}", options[item.name], dict(item.metadata))


def settings_of(config: DictConfig, space: Mapping[str, Any]) -> dict[str, Any]:
    """What the runs of a search have in common, as it was typed: dotted name -> plain value."""
    plain = OmegaConf.to_container(config, resolve=False)  # what comes from the environment stays out of the study
    return {
        name: value
        for name, value in leaves(plain)
        if name not in space and (name in PROCESSES or not name.startswith(APART))
    }


def default_values(config: DictConfig, space: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of the settings that are searched, where it lies in their range."""
    values = {name: OmegaConf.select(config, name) for name in space}
    return {name: value for name, value in values.items() if space[name]._contains(_internal(space[name], value))}


def _internal(distribution: Any, value: Any) -> float:
    """A value as Optuna stores it; -1, which no distribution of choices holds, for one that is no choice."""
    try:
        return float(distribution.to_internal_repr(value))
    except ValueError:
        return -1.0


def wanted(metrics: Mapping[str, float], name: str) -> float:
    """One validation metric. Raises ConfigError where the stage has none, TradeAgentError where it is not finite."""
    if name not in metrics:
        raise ConfigError(f"there is no validation metric {name}", f"use one of {', '.join(sorted(metrics))}")
    if not math.isfinite(metrics[name]):
        raise TradeAgentError(f"validation {name} is {metrics[name]}", "search narrower ranges")
    return metrics[name]


def violations(
    metrics: Mapping[str, float], at_most: Mapping[str, float], at_least: Mapping[str, float]
) -> dict[str, float]:
    """How far each bounded metric lies beyond its bound; a trial is feasible where all are 0 or less."""
    above = {f"{name} at most {bound:g}": wanted(metrics, name) - bound for name, bound in at_most.items()}
    below = {f"{name} at least {bound:g}": bound - wanted(metrics, name) for name, bound in at_least.items()}
    return above | below
