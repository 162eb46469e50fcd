"""What a study found: a table of its trials, the importance of what was searched, and two pictures."""

import os
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from trade_agent import safe_io
from trade_agent.search.studies import counted
from trade_agent.search.sweeps import FOLDER

FEWEST_FOR_IMPORTANCE = 4  # complete trials; below, shares of importance are noise


def summarise(study: optuna.Study) -> dict[str, Any]:
    """Plain values: `trials` in order of their numbers, `best` numbers (several with several objectives), `importance`.

    A trial: number, state, values by objective (of a pruned one the last that it reported), params, folder of its run,
    constraints that it violates. importance: parameter -> share of it, by the first objective, largest first.
    """
    trials = counted(study)
    return {
        "study": study.study_name,
        "objectives": dict(zip(names(study), [way.name.lower() for way in study.directions], strict=True)),
        "best": best_numbers(study),
        "importance": importance(study),
        "trials": [row(study, trial) for trial in trials],
    }


def names(study: optuna.Study) -> list[str]:
    return study.metric_names or ["objective"]


def row(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    values = trial.values
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    return {
        "number": trial.number,
        "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
        "values": dict(zip(names(study), values or [], strict=False)),
        "params": trial.params,
        "folder": trial.user_attrs.get(FOLDER, ""),
        "violated": sorted(name for name, value in trial.constraints.items() if value > 0.0),
    }


def best_numbers(study: optuna.Study) -> list[int]:
    """The best feasible trial, or all that no other one beats in every objective; none when none is complete."""
    feasible = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if all(value <= 0.0 for value in trial.constraints.values())
    ]
    if not feasible:
        return []
    if len(study.directions) > 1:
        return [trial.number for trial in study.best_trials]
    return [study.best_trial.number]


def importance(study: optuna.Study) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023) of the first objective; empty where too few trials are complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST_FOR_IMPORTANCE:
        return {}
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0  # the method asks what leads to low values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that, and that it is new, each time
        shares = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: sign * trial.values[0]
        )
    return {name: float(share) for name, share in shares.items()}


def write_summary(study: optuna.Study, folder: Path) -> dict[str, Any]:
    """Write summary.json, history.png and, with enough trials, importance.png to `folder`. Returns the summary."""
    summary = summarise(study)
    folder.mkdir(parents=True, exist_ok=True)
    safe_io.write_json(folder / "summary.json", summary)
    plot_history(folder / "history.png", summary)
    if summary["importance"]:
        plot_importance(folder / "importance.png", summary)
    return summary


def state_counts(summary: dict[str, Any]) -> str:
    states = [trial["state"] for trial in summary["trials"]]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"


def best_lines(summary: dict[str, Any]) -> list[str]:
    """One line for each best trial: its values, where its run is, then the overrides that repeat it."""
    if not summary["best"]:
        return ["no trial is complete and within the constraints"]
    by_number = {trial["number"]: trial for trial in summary["trials"]}
    lines = []
    for number in summary["best"]:
        trial = by_number[number]
        values = ", ".join(f"{name} {value:.4g}" for name, value in trial["values"].items())
        place = f" in {from_here(trial['folder'])}" if trial["folder"] else ""
        settings = " ".join(f"{name}={value}" for name, value in trial["params"].items())
        lines.append(f"best trial {number}: {values}{place}: {settings}")
    return lines


def from_here(folder: str) -> str:
    """A folder as one would type it."""
    return os.path.relpath(folder) if Path(folder).is_relative_to(Path.cwd()) else folder


def plot_history(path: Path, summary: dict[str, Any]) -> None:
    """Every objective of every trial in order, and the best so far of those within the constraints."""
    objectives = summary["objectives"]
    figure = Figure(figsize=(7.0, 0.5 + 3.0 * len(objectives)), layout="constrained")
    rows = figure.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, way) in zip(rows, objectives.items(), strict=True):
        _plot_objective(axes, summary["trials"], name, max if way == "maximize" else min)
    rows[0].set_title(f"study {summary['study']}")
    rows[-1].set_xlabel("trial")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=110)


def _plot_objective(axes: Axes, trials: list[dict[str, Any]], name: str, better: Callable[..., float]) -> None:
    complete = [trial for trial in trials if has(trial, "complete", name)]
    feasible = [trial for trial in complete if not trial["violated"]]
    shown = {
        "complete": ("o", feasible),
        "violates a constraint": ("v", [trial for trial in complete if trial["violated"]]),
        "pruned": ("x", [trial for trial in trials if has(trial, "pruned", name)]),
    }
    for label, (marker, chosen) in shown.items():
        if chosen:
            numbers = [trial["number"] for trial in chosen]
            axes.plot(numbers, [trial["values"][name] for trial in chosen], marker, label=label)
    best = list(accumulate((trial["values"][name] for trial in feasible), better))
    axes.step([trial["number"] for trial in feasible], best, where="post", label="best so far")
    axes.set_ylabel(f"validation {name}")
    axes.grid(alpha=0.3)
    axes.legend()


def has(trial: dict[str, Any], state: str, name: str) -> bool:
    return trial["state"] == state and name in trial["values"]


def plot_importance(path: Path, summary: dict[str, Any]) -> None:
    """Share of each searched setting in what decides about the first objective."""
    shares = dict(reversed(list(summary["importance"].items())))
    figure = Figure(figsize=(7.0, 1.0 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(shares), list(shares.values()))
    axes.set_title(f"study {summary['study']}: importance for validation {next(iter(summary['objectives']))}")
    axes.set_xlabel("share")
    figure.savefig(path, dpi=110)
