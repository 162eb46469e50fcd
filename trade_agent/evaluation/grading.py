"""The grade of a finished run: a pure function of its test metrics and a policy.

Each criterion turns one metric into a grade by its thresholds; the lowest of them is the grade before caps. A cap
limits the grade while a metric stays below a value ("does not beat buy and hold: at most C"). Both only ever rise with
a metric, so a better metric never costs a grade. F is for what is broken, not for what loses money: a metric that is
not a finite number, or features that look ahead. No torch here: the registry reads this module.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from functools import total_ordering
from itertools import pairwise
from typing import Any

from trade_agent.errors import ConfigError


@total_ordering
class PerformanceGrade(Enum):
    """Grades from worst to best; the value is the spelling used in file names and metadata."""

    F = "F"
    D = "D"
    C = "C"
    B_MINUS = "B-"
    B = "B"
    B_PLUS = "B+"
    A_MINUS = "A-"
    A = "A"
    A_PLUS = "A+"
    S = "S"

    @property
    def rank(self) -> int:
        """0 for F up to 9 for S."""
        return _GRADES.index(self)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, PerformanceGrade):
            return NotImplemented
        return self.rank < other.rank

    def __str__(self) -> str:
        return self.value


_GRADES: tuple[PerformanceGrade, ...] = tuple(PerformanceGrade)
_THRESHOLD_KEYS = tuple(grade.value for grade in _GRADES if grade >= PerformanceGrade.C)

FORECASTER = "forecaster"
TRADING = "trading"
MODEL_KINDS: dict[str, str] = {
    "cnn_lstm": FORECASTER,
    "ppo": TRADING,
    "sac": TRADING,
    "td3": TRADING,
    "hybrid": TRADING,
    "ensemble": TRADING,
}
# Metrics that, when they are there and not 0, say that nothing else about the run can be believed.
BREAKING: dict[str, str] = {"leaked": "features changed with later bars: they look ahead"}


@dataclass(kw_only=True, slots=True)
class Criterion:
    """A metric and, for each grade from C to S, the least value that earns it; anything lower is a D."""

    metric: str
    thresholds: dict[str, float]


@dataclass(kw_only=True, slots=True)
class Cap:
    """No grade above ``grade`` while ``metric`` is below ``at_least``."""

    metric: str
    at_least: float
    grade: str
    reason: str


@dataclass(kw_only=True, slots=True)
class KindPolicy:
    """Criteria and caps of one kind of model."""

    criteria: list[Criterion]
    caps: list[Cap]


@dataclass(kw_only=True, slots=True)
class GradePolicy:
    """``id`` names the policy in the metadata; change it whenever a threshold changes."""

    id: str
    forecaster: KindPolicy
    trading: KindPolicy

    @property
    def sha256(self) -> str:
        """Hash over every threshold and cap, independent of the order of keys."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def kind(self, model_type: str) -> KindPolicy:
        """The part of the policy that judges a model type.

        Raises:
            ConfigError: the model type is unknown.
        """
        if model_type not in MODEL_KINDS:
            raise ConfigError(f"model type {model_type!r} has no grading", f"use one of {', '.join(MODEL_KINDS)}")
        return self.forecaster if MODEL_KINDS[model_type] == FORECASTER else self.trading


@dataclass(frozen=True, slots=True)
class AppliedCap:
    """A cap whose condition held, with its reason for people."""

    rule: str
    cap: str
    reason: str


@dataclass(frozen=True, slots=True)
class GradeDecision:
    """A grade and everything needed to explain it and to compute it again.

    ``score`` is the rank before caps (0 is F, 9 is S) with the way to the next grade as its fraction. ``inputs`` holds
    the metrics that were used; None stands for one that is not a finite number.
    """

    grade: PerformanceGrade
    score: float
    inputs: dict[str, float | None]
    caps: tuple[AppliedCap, ...]
    policy_id: str
    policy_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the metadata."""
        return {
            "grade": self.grade.value,
            "score": self.score,
            "inputs": dict(self.inputs),
            "caps": [asdict(cap) for cap in self.caps],
            "policy_id": self.policy_id,
            "policy_sha256": self.policy_sha256,
        }


def _criterion_score(criterion: Criterion, value: float) -> float:
    """Rank of the highest threshold that ``value`` reaches, plus its way to the next one in [0, 1)."""
    thresholds = [criterion.thresholds[key] for key in _THRESHOLD_KEYS]
    reached = sum(value >= threshold for threshold in thresholds)
    rank = PerformanceGrade.D.rank + reached
    if reached == 0 or reached == len(thresholds):
        return float(rank)
    low, high = thresholds[reached - 1], thresholds[reached]
    return rank + min((value - low) / (high - low), 0.999)


def grade(model_type: str, metrics: Mapping[str, float | None], policy: GradePolicy) -> GradeDecision:
    """Grades a finished run.

    Args:
        model_type: one of ``MODEL_KINDS``.
        metrics: test metrics by name, all finite; those that the policy names must be there unless the run is broken.
            None counts as not finite, so that stored ``inputs`` grade the same again. ``leaked`` not 0 is an F.

    Raises:
        ConfigError: unknown model type, or the policy names a metric that the evaluation did not compute.
    """
    kind = policy.kind(model_type)
    broken = _broken(metrics)
    if broken is None:
        missing = [name for name in _metric_names(kind) if name not in metrics]
        if missing:
            raise ConfigError(
                f"grading policy {policy.id!r} needs the metric {missing[0]!r} for {model_type}",
                f"name one of {', '.join(sorted(metrics))}",
            )
    not_finite = [name for name, value in metrics.items() if _finite_or_none(value) is None]
    names = [name for name in (*_metric_names(kind), *BREAKING, *not_finite) if name in metrics]
    inputs = {name: _finite_or_none(metrics[name]) for name in names}
    if broken is not None:
        return GradeDecision(PerformanceGrade.F, 0.0, inputs, (broken,), policy.id, policy.sha256)

    values = {name: float(value) for name, value in inputs.items() if value is not None}
    score = min(_criterion_score(criterion, values[criterion.metric]) for criterion in kind.criteria)
    caps = tuple(
        AppliedCap(f"{cap.metric} < {cap.at_least:g}", cap.grade, cap.reason)
        for cap in kind.caps
        if values[cap.metric] < cap.at_least
    )
    result = min([_GRADES[int(score)], *(PerformanceGrade(cap.cap) for cap in caps)])
    return GradeDecision(result, score, inputs, caps, policy.id, policy.sha256)


def _metric_names(kind: KindPolicy) -> list[str]:
    names = [*(item.metric for item in kind.criteria), *(item.metric for item in kind.caps)]
    return list(dict.fromkeys(names))


def _finite_or_none(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _broken(metrics: Mapping[str, float | None]) -> AppliedCap | None:
    """Why the run is an F before any threshold is looked at, or None."""
    for name, reason in BREAKING.items():
        if name in metrics and metrics[name] != 0:
            return AppliedCap(name, "F", reason)
    for name, value in metrics.items():
        if _finite_or_none(value) is None:
            return AppliedCap("not finite", "F", f"{name} is not a finite number")
    return None


def policy_from_dict(values: Mapping[str, Any], *, where: str = "grading") -> GradePolicy:
    """Checks a policy as read from YAML or JSON.

    Raises:
        ConfigError: naming the field that is missing, unknown, of the wrong type or out of order.
    """
    _check_keys(values, [field.name for field in fields(GradePolicy)], where)
    if not isinstance(values["id"], str) or not values["id"]:
        raise ConfigError(f"{where}.id is {values['id']!r}", "give the policy a name")
    return GradePolicy(
        id=values["id"],
        forecaster=_kind(values["forecaster"], f"{where}.{FORECASTER}"),
        trading=_kind(values["trading"], f"{where}.{TRADING}"),
    )


def validate_policy(policy: GradePolicy, *, where: str = "grading") -> None:
    """The checks of ``policy_from_dict`` for a policy that was built otherwise."""
    policy_from_dict(asdict(policy), where=where)


def _kind(values: Any, where: str) -> KindPolicy:
    _check_keys(values, ["criteria", "caps"], where)
    for name in ("criteria", "caps"):
        if isinstance(values[name], str) or not isinstance(values[name], Sequence):
            raise ConfigError(f"{where}.{name} is not a list", "start each entry with '- metric: NAME'")
    if not values["criteria"]:
        raise ConfigError(f"{where}.criteria is empty", "name at least one metric with its thresholds")
    return KindPolicy(
        criteria=[_criterion(item, f"{where}.criteria[{i}]") for i, item in enumerate(values["criteria"])],
        caps=[_cap(item, f"{where}.caps[{i}]") for i, item in enumerate(values["caps"])],
    )


def _criterion(values: Any, where: str) -> Criterion:
    _check_keys(values, ["metric", "thresholds"], where)
    thresholds = values["thresholds"]
    _check_keys(thresholds, list(_THRESHOLD_KEYS), f"{where}.thresholds")
    numbers = {key: _number(thresholds[key], f"{where}.thresholds.{key}") for key in _THRESHOLD_KEYS}
    for lower, upper in pairwise(_THRESHOLD_KEYS):
        if numbers[lower] >= numbers[upper]:
            raise ConfigError(
                f"{where}.thresholds.{upper} is {numbers[upper]:g}, not above {lower} at {numbers[lower]:g}",
                "thresholds must rise from C to S",
            )
    return Criterion(metric=_text(values["metric"], f"{where}.metric"), thresholds=numbers)


def _cap(values: Any, where: str) -> Cap:
    _check_keys(values, [field.name for field in fields(Cap)], where)
    spelling = values["grade"]
    if spelling not in [grade.value for grade in _GRADES]:
        raise ConfigError(f"{where}.grade is {spelling!r}", f"use one of {', '.join(g.value for g in _GRADES)}")
    return Cap(
        metric=_text(values["metric"], f"{where}.metric"),
        at_least=_number(values["at_least"], f"{where}.at_least"),
        grade=spelling,
        reason=_text(values["reason"], f"{where}.reason"),
    )


def _check_keys(values: Any, expected: Sequence[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is not a mapping", f"give it the fields {', '.join(expected)}")
    for name in values:
        if name not in expected:
            raise ConfigError(f"{where}.{name} is unknown", f"the fields are {', '.join(expected)}")
    for name in expected:
        if name not in values:
            raise ConfigError(f"{where}.{name} is missing", f"the fields are {', '.join(expected)}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where} is {value!r}", "give a finite number")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} is {value!r}", "give a text")
    return value
