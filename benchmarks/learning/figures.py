"""From the results of single seeds to figures with an interval, and to pictures of learned against optimal policies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import mean_interval
from benchmarks.learning.tasks import Task

Result = dict[str, Any]


def figures(name: str, variant: str, task: Task, results: Sequence[Result], wanted: int) -> list[dict[str, Any]]:
    """The lines of one variant: what could be reached, what was, and how far the seeds are finished.

    Whether the target is met is said when all seeds are there, not before.
    """
    common = {
        "seeds": len(results),
        "env_steps": max((result["env_steps"] for result in results), default=task.env_steps),
        "finished": len(results) >= wanted,
        "missing": max(wanted - len(results), 0),
    }
    lines = KINDS[task.kind](task, variant, results) if results else [{"figure": "", "reached": None, "met": None}]
    blank = {"figure": "", "unit": task.unit, "optimum": None, "ratio": None, "interval": None, "target": task.target}
    return [
        blank
        | line
        | {"figure": " ".join(filter(None, (name, variant, str(line["figure"])))), **common}
        | ({} if common["finished"] else {"met": None})
        for line in lines
    ]


def mean(results: Sequence[Result], key: str) -> float:
    return float(np.mean([result[key] for result in results]))


def ratio_figure(task: Task, variant: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """reached / optimum of each seed, on the bars of that seed.

    Where `reached` is an expectation given the signal, `realised_ratio` is that of the market's own rewards.
    """
    ratio, interval = mean_interval([result["reached"] / result["optimum"] for result in results])
    line = {"figure": "", "optimum": mean(results, "optimum"), "reached": mean(results, "reached")}
    if "realised" in results[0]:
        realised, spread = mean_interval([result["realised"] / result["realised_optimum"] for result in results])
        line |= {"realised_ratio": realised, "realised_interval": spread}
    return [line | {"ratio": ratio, "interval": interval, "met": ratio >= task.target}]


def accuracy_figure(task: Task, variant: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """(accuracy - base rate) / (Bayes - base rate); on noise the number of runs that beat a naive forecast."""
    reached = mean(results, "reached")
    if "optimum" not in results[0]:
        beaten = sum(bool(result["beaten"]) for result in results)
        line = {"figure": "beats a naive forecast", "unit": "runs", "optimum": 0, "reached": beaten, "target": 0}
        return [line | {"accuracy": reached, "met": beaten == 0}]
    scores = [
        (result["reached"] - result["base_rate"]) / (result["optimum"] - result["base_rate"]) for result in results
    ]
    ratio, interval = mean_interval(scores)
    line = {"figure": "", "optimum": mean(results, "optimum"), "reached": reached}
    return [line | {"ratio": ratio, "interval": interval, "met": ratio >= task.target}]


def alarm_figure(task: Task, variant: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Runs in which noise was taken for a strategy, and the turnover after training over that before."""
    alarms = sum(result["significant"] or result["above_c"] for result in results)
    before, after = np.mean([result["turnover"] for result in results], axis=0)
    ratio, interval = mean_interval([result["turnover"][1] / result["turnover"][0] for result in results])
    return [
        {"figure": "significant or above C", "optimum": 0, "reached": alarms, "met": alarms <= task.target},
        {
            "figure": "turnover after over before training",
            "unit": "weight traded a bar",
            "optimum": 0.0,
            "before": float(before),
            "reached": float(after),
            "ratio": ratio,
            "interval": interval,
            "target": 1.0,
            "met": interval is not None and interval[1] < 1.0,
        },
    ]


def difference_figure(task: Task, variant: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """reached - compared, paired by seed: it is to lie above the target with its interval."""
    difference, interval = mean_interval([result["reached"] - result["compared"] for result in results])
    line = {"figure": "difference", "compared": mean(results, "compared"), "reached": mean(results, "reached")}
    return [
        line
        | {"difference": difference, "interval": interval, "met": interval is not None and interval[0] > task.target}
    ]


KINDS = {
    "ratio": ratio_figure,
    "accuracy": accuracy_figure,
    "false alarms": alarm_figure,
    "difference": difference_figure,
}

# What the axes of a picture show: scale and label of the signal, label of the action.
AXES = {
    "leak": (1e4, "return of the next bar, as leaked (bp)", "weight traded to"),
    "garleanu_pedersen": (1e4, "predicted return of the next bar (bp)", "position traded to (notional)"),
}


def plot_policies(path: Path, name: str, curves: dict[str, Result]) -> None:
    """One panel for each algorithm: the action against the signal for some held positions, the optimum dashed."""
    from matplotlib.figure import Figure

    scale, signal_label, action_label = AXES[name]
    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (algorithm, curve) in zip(panels, curves.items(), strict=True):
        x = scale * np.array(curve["signal"])
        for index, held in enumerate(curve["held"]):
            panel.plot(x, curve["learned"][index], color=f"C{index}", label=f"learned, held {held:+.2f}")
            panel.plot(x, curve["optimal"][index], color=f"C{index}", linestyle="--", label="optimal")
        panel.set_title(algorithm)
        panel.set_xlabel(signal_label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(action_label)
    panels[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
