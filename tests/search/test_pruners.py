"""When a trial is ended early. The scores are worked out by hand."""

import optuna
import pytest
from optuna.trial import TrialState

from trade_agent.search.pruners import make_pruner

ENDED = {100: 5.0, 200: 1.0}, {150: 3.0, 200: 4.0}, {50: 1.0}  # scores of three finished trials at their steps


def judged(direction: str, reports: dict[int, float], *, startup_trials: int = 1) -> bool:
    """Whether the median pruner ends a trial after its last report."""
    study = optuna.create_study(direction=direction)
    for values in ENDED:
        study.add_trial(optuna.create_trial(value=0.0, intermediate_values=dict(values)))
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values={100: 99.0}))
    trial = study.ask()
    for step, value in reports.items():
        trial.report(value, step)
    return make_pruner("median", startup_trials=startup_trials).prune(study, study.trials[trial.number])


@pytest.mark.parametrize(
    ("reports", "pruned"),
    [
        ({}, False),
        ({40: -9.0}, False),  # nobody was checked by then
        ({60: 0.9}, True),  # the third one had 1
        ({60: 1.0}, False),
        ({120: 2.9}, True),  # 5 and 1: the median is 3
        ({120: 3.0}, False),
        ({170: 2.9}, True),  # 5, 3 and 1
        ({200: 3.9}, True),  # 5 (its best, not its latest), 4 and 1
        ({60: 4.0, 200: 0.0}, False),  # its best counts, as for the others
        ({60: float("nan")}, False),
    ],
)
def test_the_best_by_a_step_is_compared_with_the_best_of_the_others_by_that_step(
    reports: dict[int, float], pruned: bool
) -> None:
    assert judged("maximize", reports) == pruned


def test_smaller_is_better_where_that_is_wanted() -> None:
    assert judged("minimize", {170: 3.1})  # 5, 3 and 1
    assert not judged("minimize", {170: 3.0})


def test_too_few_to_compare_with_prune_nothing() -> None:
    assert judged("maximize", {120: 0.0}, startup_trials=2)
    assert not judged("maximize", {120: 0.0}, startup_trials=3)  # the second one had its first check at 150


def test_halving_keeps_the_best_quarter_at_each_rung() -> None:
    study, pruner = optuna.create_study(direction="maximize"), make_pruner("halving", startup_trials=0)
    study.add_trial(optuna.create_trial(value=1.0, intermediate_values={100: 0.0, 6400: 1.0}))  # a rung at 64 steps
    better, worse = study.ask(), study.ask()
    better.report(1.0, 100)
    assert not pruner.prune(study, study.trials[better.number])
    worse.report(0.5, 100)
    assert pruner.prune(study, study.trials[worse.number])


def test_none_prunes_nothing() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.report(-99.0, 1)
    assert not make_pruner("none", startup_trials=0).prune(study, study.trials[0])
