"""What a pipeline demands of its input, and how two preprocessing contracts differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trade_agent.errors import PreprocessingError


def check_names(given: Sequence[str], wanted: Sequence[str], *, what: str) -> None:
    """Raise PreprocessingError naming the first name that is missing, extra, repeated or out of order."""
    for name in wanted:
        if name not in given:
            raise PreprocessingError(f"{what} '{name}' is missing", f"expected, in this order: {', '.join(wanted)}")
    for position, name in enumerate(given):
        if name not in wanted:
            raise PreprocessingError(
                f"{what} '{name}' is not expected", f"expected, in this order: {', '.join(wanted)}"
            )
        if name in given[:position]:
            raise PreprocessingError(f"{what} '{name}' occurs twice", "give it once")
    for position, (name, expected) in enumerate(zip(given, wanted, strict=True)):
        if name != expected:
            raise PreprocessingError(
                f"{what} '{name}' stands at position {position}, where '{expected}' is expected",
                f"reorder to: {', '.join(wanted)}",
            )


def check_input(
    given: Mapping[str, np.ndarray], given_seconds: int, *, columns: Sequence[str], bar_seconds: int
) -> None:
    """Raise PreprocessingError unless ``given`` has these columns in this order as float64, ``bar_seconds`` apart.

    Values are checked later, on the tradable rows only (series.asset_series).
    """
    check_names(list(given), columns, what="column")
    for name, values in given.items():
        if values.dtype != np.float64:
            raise PreprocessingError(f"column '{name}' has type {values.dtype}, expected float64", "convert the column")
    if given_seconds != bar_seconds:
        raise PreprocessingError(
            f"bar_seconds is {given_seconds}, the pipeline was fitted on bars of {bar_seconds} seconds",
            "resample the bars or fit a pipeline for them",
        )


def contract_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Name what differs between two contracts, the features by their names; [] when nothing does."""
    differences = []
    for key in sorted(set(first) | set(second)):
        if first.get(key) == second.get(key):
            continue
        if key == "features" and key in first and key in second:
            differences += _feature_differences(first[key], second[key])
        else:
            differences.append(f"{key} ({first.get(key, 'absent')} and {second.get(key, 'absent')})")
    return differences


def _feature_differences(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[str]:
    ours, theirs = ({feature["name"]: feature for feature in side} for side in (first, second))
    differences = [f"feature '{name}' only in the first" for name in ours if name not in theirs]
    differences += [f"feature '{name}' only in the second" for name in theirs if name not in ours]
    if not differences and list(ours) != list(theirs):
        differences.append(f"order of the features ({', '.join(ours)} and {', '.join(theirs)})")
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            keys = sorted(k for k in {*ours[name], *theirs[name]} if ours[name].get(k) != theirs[name].get(k))
            differences.append(f"{', '.join(keys)} of feature '{name}'")
    return differences
