"""What ends a trial early, by the scores of its validation checks. A step is an environment step or an epoch."""

import math
import statistics

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def make_pruner(name: str, *, startup_trials: int) -> BasePruner:
    """median: see `MedianPruner`. none: nothing is pruned.

    halving: asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"):
    a quarter of the trials goes on at each rung, which are 1, 4, 16 and 64 percent of the steps of a whole trial.
    """
    if name == "median":
        return MedianPruner(startup_trials)
    return SuccessiveHalvingPruner(min_resource="auto") if name == "halving" else NopPruner()


class MedianPruner(BasePruner):
    """Ends a trial whose best score so far is below the median of what the finished ones had by the same step.

    The median stopping rule of Golovin et al. 2017, "Google Vizier", with the best score, which is what a run keeps, in
    place of the mean. Unlike Optuna's own it needs no two trials that check at equal steps: rounds of another length
    shift them. startup_trials: so many trials must be finished, and have been checked by then; one at least.
    """

    def __init__(self, startup_trials: int) -> None:
        self.startup_trials = max(startup_trials, 1)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None:
            return False
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        others = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        scores = [score for other in others if (score := best_by(other, step, sign)) is not None]
        own = best_by(trial, step, sign)
        return own is not None and len(scores) >= self.startup_trials and own < statistics.median(scores)


def best_by(trial: FrozenTrial, step: int, sign: float) -> float | None:
    """The best of `sign` times the scores that a trial reported up to a step; None where it has none."""
    values = [sign * value for at, value in trial.intermediate_values.items() if at <= step and math.isfinite(value)]
    return max(values, default=None)
