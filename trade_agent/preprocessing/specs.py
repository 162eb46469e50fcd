"""Names and parameters of a pipeline's steps, checked against the tables of features and transforms."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing.features import FEATURES
from trade_agent.preprocessing.steps import TRANSFORMS

# TA-Lib takes no longer period than 100,000; a longer window is a slip of the finger.
MAX_WINDOW = 50_000


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step by its name in FEATURES or TRANSFORMS; ``params`` are plain values, defaults for what is left out."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


def complete_steps(steps: Sequence[StepSpec]) -> tuple[StepSpec, ...]:
    """Return the steps with every parameter present (lists for sequences), features first as given.

    Raises PreprocessingError for an unknown name or parameter, a value of the wrong type or out of range, a feature
    step after a transform, or no feature step at all.
    """
    complete = tuple(_complete(step) for step in steps)
    kinds = [step.name in FEATURES for step in complete]
    if not any(kinds):
        raise PreprocessingError("a pipeline needs at least one feature step", f"choose from: {', '.join(FEATURES)}")
    if kinds != sorted(kinds, reverse=True):
        late = complete[len(kinds) - 1 - kinds[::-1].index(True)].name
        raise PreprocessingError(
            f"feature step '{late}' comes after a scaler or clip step", "put all feature steps first"
        )
    return complete


def _complete(step: StepSpec) -> StepSpec:
    entry = FEATURES.get(step.name) or TRANSFORMS.get(step.name)
    if entry is None:
        raise PreprocessingError(
            f"unknown preprocessing step '{step.name}'", _suggest(step.name, FEATURES | TRANSFORMS)
        )
    for key in step.params:
        if key not in entry.defaults:
            raise PreprocessingError(
                f"step '{step.name}' has no parameter '{key}'", _suggest(str(key), dict(entry.defaults))
            )
    params = {
        key: _value(step.params.get(key, default), default, f"{step.name}.{key}", entry.least)
        for key, default in entry.defaults.items()
    }
    if problem := entry.problem(params):
        raise PreprocessingError(f"step '{step.name}' with {params}: {problem}", "correct the parameters")
    return StepSpec(step.name, params)


def _value(value: Any, default: int | float | str | tuple[int, ...], where: str, least: int) -> Any:
    if isinstance(default, str):
        if isinstance(value, str):
            return value
        wanted = "a text"
    elif isinstance(default, tuple):
        numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if numbers and len(set(map(str, numbers))) == len(numbers):
            return [_value(number, 0, where, least) for number in numbers]
        wanted = "a list of different whole numbers"
    elif isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_WINDOW:
            return int(value)
        wanted = f"a whole number from {least} to {MAX_WINDOW}"
    else:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        wanted = "a finite number"
    raise PreprocessingError(f"{where} is {value!r}", f"give {wanted}")


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"choose from: {', '.join(known)}" if known else "it takes none"
