"""Fit/transform steps: they learn from train rows and are applied to every row.

Each learns one number per feature from the rows of all assets pooled, so that one pipeline serves any set of assets and
differences between assets survive the scaling. Features bounded by nature (cycles, flags) never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Params = Mapping[str, Any]
Numbers = Mapping[str, float]  # what was learned of one feature


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """One row of TRANSFORMS.

    fit(values [N] of one feature, params) -> the numbers named in ``arrays``; apply(values [N], numbers, params) ->
    [N]. Values are finite float64. ``defaults`` and ``problem`` as in features.Feature.
    """

    fit: Callable[[np.ndarray, Params], dict[str, float]]
    apply: Callable[[np.ndarray, Numbers, Params], np.ndarray]
    arrays: tuple[str, ...]
    defaults: Mapping[str, int | float | str | tuple[int, ...]]
    least: int = 1
    problem: Callable[[Params], str] = lambda params: ""


def _fit_standard(values: np.ndarray, params: Params) -> dict[str, float]:
    # scikit-learn takes a second to import and only fitting needs it.
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(values[:, None])  # gives a constant column the scale 1
    return {"centre": scaler.mean_[0], "scale": scaler.scale_[0]}


def _fit_robust(values: np.ndarray, params: Params) -> dict[str, float]:
    from sklearn.preprocessing import RobustScaler, StandardScaler

    quantiles = (100.0 * params["lower"], 100.0 * params["upper"])
    scaler = RobustScaler(quantile_range=quantiles).fit(values[:, None])
    # A column that is the same number most of the time, like the gap between bars of a market that never closes, has no
    # interquartile range; its standard deviation is the scale it has left. Where that is 0 too, scikit-learn gives 1.
    if np.ptp(np.percentile(values, quantiles)) <= 10.0 * np.finfo(np.float64).eps:
        scaler.scale_ = StandardScaler().fit(values[:, None]).scale_
    return {"centre": scaler.center_[0], "scale": scaler.scale_[0]}


def _scale(values: np.ndarray, numbers: Numbers, params: Params) -> np.ndarray:
    return (values - numbers["centre"]) / numbers["scale"]


def _fit_winsorize(values: np.ndarray, params: Params) -> dict[str, float]:
    lower, upper = np.quantile(values, (params["lower"], params["upper"]))
    return {"lower": lower, "upper": upper}


def _winsorize(values: np.ndarray, numbers: Numbers, params: Params) -> np.ndarray:
    return np.clip(values, numbers["lower"], numbers["upper"])


def _fit_nothing(values: np.ndarray, params: Params) -> dict[str, float]:
    return {}


def _clip(values: np.ndarray, numbers: Numbers, params: Params) -> np.ndarray:
    return np.clip(values, -params["limit"], params["limit"])


def _quantile_problem(params: Params) -> str:
    return "" if 0.0 <= params["lower"] < params["upper"] <= 1.0 else "0 <= lower < upper <= 1 must hold"


TRANSFORMS: dict[str, Transform] = {
    # (x - mean) / standard deviation
    "standard_scaler": Transform(fit=_fit_standard, apply=_scale, arrays=("centre", "scale"), defaults={}),
    # (x - median) / interquartile range
    "robust_scaler": Transform(
        fit=_fit_robust,
        apply=_scale,
        arrays=("centre", "scale"),
        defaults={"lower": 0.25, "upper": 0.75},
        problem=_quantile_problem,
    ),
    # x limited to two quantiles of the train rows
    "winsorize": Transform(
        fit=_fit_winsorize,
        apply=_winsorize,
        arrays=("lower", "upper"),
        defaults={"lower": 0.005, "upper": 0.995},
        problem=_quantile_problem,
    ),
    # x limited to [-limit, limit]
    "clip": Transform(
        fit=_fit_nothing,
        apply=_clip,
        arrays=(),
        defaults={"limit": 5.0},
        problem=lambda params: "" if params["limit"] > 0.0 else "limit must be above 0",
    ),
}
