"""A run as one trial of a study: it reports its validation scores and learns when it is not worth going on."""

from collections.abc import Mapping

from optuna.pruners import BasePruner
from optuna.trial import Trial, TrialState

from trade_agent.errors import ConfigError, TrialPrunedError
from trade_agent.search.studies import load_study
from trade_agent.search.sweeps import FOLDER


class StudyTrial:
    """The job's own hand on its trial, through the storage that all jobs share.

    folder: of the run, by which the sweep knows the trial. warmup_checks: checks after which the trial may be pruned.
    Raises ConfigError when no running trial of the study is in this folder.
    """

    def __init__(
        self, storage: str, study_name: str, folder: str, *, pruner: BasePruner, warmup_checks: int = 0
    ) -> None:
        self.study, self.warmup_checks = load_study(storage, study_name), warmup_checks
        self.study.pruner = pruner
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        found = [trial for trial in running if trial.user_attrs.get(FOLDER) == folder]
        if not found:
            raise ConfigError(f"the study {study_name} has no running trial in {folder}", "start the search again")
        self.trial = Trial(self.study, found[-1]._trial_id)
        self.reported = set(found[-1].intermediate_values)  # steps; not empty where the run goes on

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on what a validation check measured. Raises TrialPrunedError when the trial is to end here.

        A check that was reported before, by a run that goes on behind its checkpoint, is passed over. Optuna prunes by
        one objective only: with several of them nothing is reported.
        """
        names = self.study.metric_names or []
        if len(names) != 1 or names[0] not in values or step in self.reported:
            return
        self.trial.report(values[names[0]], step)
        self.reported.add(step)
        if len(self.reported) > self.warmup_checks and self.trial.should_prune():
            shown = f"{names[0]} {values[names[0]]:.4g}"
            raise TrialPrunedError(
                f"trial {self.trial.number} was pruned at check {len(self.reported)}, step {step}, with {shown}"
            )

    def unregistered(self) -> int:
        """Trials of the study that were looked at and left no model: each was a chance to be lucky, too."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED, TrialState.FAIL)))
