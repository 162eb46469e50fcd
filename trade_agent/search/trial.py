"""A run as one trial of a study: it reports its validation scores and learns when it is not worth going on."""

from collections.abc import Mapping

from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import Trial, TrialState

from trade_agent.errors import ConfigError, TrialPrunedError
from trade_agent.search.studies import JOB, load_study


def make_pruner(name: str, *, startup_trials: int, warmup_checks: int) -> BasePruner:
    """What ends a trial early.

    median: a best score so far below the median of the other trials' at the same check. halving: asynchronous
    successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"), in which a quarter of
    the trials goes on at each rung. none: nothing.
    """
    if name == "median":
        return MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_checks)
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=max(warmup_checks, 1))
    return NopPruner()


class StudyTrial:
    """The job's own hand on its trial, through the storage that all jobs share.

    job: how the sweep named the run when it asked for the trial. Raises ConfigError when no trial of the study is it.
    """

    def __init__(self, storage: str, study_name: str, job: str, *, pruner: BasePruner) -> None:
        self.study = load_study(storage, study_name)
        self.study.pruner = pruner
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        found = [trial for trial in running if trial.user_attrs.get(JOB) == job]
        if not found:
            raise ConfigError(f"the study {study_name} has no running trial for {job}", "start the search again")
        self.trial = Trial(self.study, found[-1]._trial_id)
        # A job that was requeued goes on behind what it reported before.
        self.checks = max(found[-1].intermediate_values, default=0)

    def report(self, values: Mapping[str, float]) -> None:
        """Hand on what a validation check measured. Raises TrialPrunedError when the trial is to end here.

        Optuna prunes by one objective only: with several of them nothing is reported.
        """
        names = self.study.metric_names or []
        if len(names) != 1 or names[0] not in values:
            return
        self.checks += 1
        self.trial.report(values[names[0]], self.checks)
        if self.trial.should_prune():
            shown = f"{names[0]} {values[names[0]]:.4g}"
            raise TrialPrunedError(f"trial {self.trial.number} was pruned at check {self.checks} with {shown}")

    def unregistered(self) -> int:
        """Trials of the study that were looked at and left no model: each was a chance to be lucky, too."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED, TrialState.FAIL)))


def job_name(sweep_dir: str, number: int) -> str:
    """The name by which sweep and job know the same run."""
    return f"{sweep_dir}#{number}"
