"""A preprocessing pipeline: causal features of bars, then steps fitted on train rows, as one float32 table.

The pipeline's *contract* is what a model must know to read the table: the features with their order, units and
parameters, the steps applied to them and the bars they are made for. Its *content* adds what was fitted and on what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from trade_agent import safe_io
from trade_agent.data.bars import Bars
from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing.features import FEATURES, FLAG, UNSCALED_UNITS, columns_of
from trade_agent.preprocessing.schema import check_input, check_names, contract_differences
from trade_agent.preprocessing.series import COLUMNS, AssetSeries, asset_series
from trade_agent.preprocessing.specs import StepSpec, complete_steps
from trade_agent.preprocessing.steps import TRANSFORMS

__all__ = ["CODE_VERSION", "FeatureTable", "PreprocessingPipeline", "StepSpec"]

STATE_SCHEMA = 1
# Raise by one when a feature or step yields other numbers for the same bars: stored pipelines then must be refitted.
CODE_VERSION = 1
AVAILABLE = "available"


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """``values`` [T, A, F] float32, all finite; ``names`` of the F features; rows < ``warmup_bars`` are not usable.

    Row t is known once bar t has closed. Where an asset was not tradable, or has not been for ``warmup_bars`` bars,
    every feature is 0, and so is the feature "available" where the table has one.
    """

    values: np.ndarray
    names: tuple[str, ...]
    warmup_bars: int


@dataclass(frozen=True, slots=True)
class _Fitted:
    bar_seconds: int
    masked: bool  # whether the table has the feature "available"
    start: int
    stop: int
    data_sha256: str
    arrays: tuple[dict[str, np.ndarray], ...]  # one per transform


class PreprocessingPipeline:
    """An ordered list of feature steps followed by fit/transform steps; see ``templates.TEMPLATES`` for ready ones.

    ``prices`` says which prices the bars carry ("adjusted" for splits and dividends, or "raw"); it is part of the
    contract. ``version`` is the version under which a store keeps the pipeline, None before that.
    """

    def __init__(self, steps: Sequence[StepSpec], *, prices: str = "adjusted") -> None:
        self.steps = complete_steps(steps)
        self.prices = prices
        self.version: str | None = None
        self._features = [step for step in self.steps if step.name in FEATURES]
        self._transforms = [step for step in self.steps if step.name in TRANSFORMS]
        self._fitted: _Fitted | None = None
        check_names([name for name, _ in self._outputs(1)], list(dict(self._outputs(1))), what="feature")

    @property
    def warmup_bars(self) -> int:
        """Bars an asset must have been tradable for before its features are usable; known before fitting."""
        return max(FEATURES[step.name].warmup(step.params) for step in self._features)

    @property
    def fitted_rows(self) -> range:
        """The bar indices that ``fit`` was given."""
        return range(self._state.start, self._state.stop)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of the table, in order; calendar features depend on the bars, so only after fitting."""
        return tuple(feature["name"] for feature in self.contract["features"])

    @property
    def contract(self) -> dict[str, Any]:
        """Everything a consumer must know to use the table correctly, as plain values. It names no symbol or window."""
        state = self._state
        features = []
        for step in self._features:
            entry = FEATURES[step.name]
            features += [
                {"name": name, "unit": unit, "step": step.name, "params": dict(step.params)}
                for name, unit in entry.outputs(step.params, state.bar_seconds)
            ]
        if state.masked:
            features.append({"name": AVAILABLE, "unit": FLAG, "step": AVAILABLE, "params": {}})
        return {
            "code_version": CODE_VERSION,
            "bar_seconds": state.bar_seconds,
            "prices": self.prices,
            "columns": self._columns,
            "dtype": "float64",
            "features": features,
            "transforms": [{"name": step.name, "params": dict(step.params)} for step in self._transforms],
            "warmup_bars": self.warmup_bars,
        }

    @property
    def contract_hash(self) -> str:
        """SHA-256 of the contract."""
        return safe_io.sha256_bytes(safe_io.canonical_json(self.contract))

    @property
    def content_hash(self) -> str:
        """SHA-256 over the contract, the fitted arrays and the rows and data they were fitted on."""
        state = self._state
        arrays = [
            {name: [str(a.dtype), list(a.shape), safe_io.sha256_bytes(a.tobytes())] for name, a in step.items()}
            for step in state.arrays
        ]
        fit = [state.start, state.stop, state.data_sha256]
        return safe_io.sha256_bytes(safe_io.canonical_json({"contract": self.contract, "fit": fit, "arrays": arrays}))

    def fit(self, bars: Bars, rows: range) -> Self:
        """Fit every step on the bar indices ``rows``; bars from ``rows.stop`` on are not looked at.

        Bars before ``rows.start`` feed only the trailing windows of the features. Rows of all tradable assets are
        pooled. Raises PreprocessingError for bars that do not fit and where fewer than 2 usable rows are left.
        """
        if not (0 <= rows.start < rows.stop <= bars.num_bars and rows.step == 1):
            raise PreprocessingError(
                f"cannot fit on {rows} of {bars.num_bars} bars", "give a non-empty range of bar indices with step 1"
            )
        past = bars.rows(0, rows.stop)
        columns = [self._fit_column(column) for column in self._train_columns(past, rows.start)]
        fitted = [
            {name: np.array([column[index][name] for column in columns]) for name in TRANSFORMS[step.name].arrays}
            for index, step in enumerate(self._transforms)
        ]
        self._fitted = _Fitted(
            bar_seconds=past.bar_seconds,
            masked=past.num_assets > 1 or not bool(past.tradable.all()),
            start=rows.start,
            stop=rows.stop,
            data_sha256=past.fingerprint,
            arrays=tuple(fitted),
        )
        self.version = None
        return self

    def transform(self, bars: Bars) -> FeatureTable:
        """Compute the table for all bars; row t depends on bars up to t only.

        A pipeline fitted on one asset without gaps has no feature "available"; a gap it meets later is a row of zeros.
        Raises PreprocessingError, naming the column, for bars that do not fit the schema, and when all is warm-up.
        """
        state = self._state
        self.check_input(_given(bars, self._columns), bar_seconds=bars.bar_seconds)
        warmup = self.warmup_bars
        if bars.num_bars <= warmup:
            raise PreprocessingError(
                f"{bars.num_bars} bars are all warm-up, the features need {warmup} bars before the first usable one",
                "give more bars or choose features with shorter windows",
            )
        names = self.feature_names
        table = np.zeros((bars.num_bars, bars.num_assets, len(names)), dtype=np.float32)
        for asset in range(bars.num_assets):
            rows = self._usable_rows(bars, asset)
            for column, (place, values) in enumerate(self._columns_of(bars, asset)):
                if place is not None:
                    for step, arrays in zip(self._transforms, state.arrays, strict=True):
                        own = {name: array[place] for name, array in arrays.items()}
                        values = TRANSFORMS[step.name].apply(values, own, step.params)
                table[rows, asset, column] = values
            if state.masked:
                table[rows, asset, -1] = 1.0
        return FeatureTable(table, names, warmup)

    def check_input(self, columns: Mapping[str, np.ndarray], *, bar_seconds: int) -> None:
        """Raise PreprocessingError naming the field unless ``columns`` are the contract's: names, order, type, step.

        ``transform`` asks this of its Bars; whoever builds bars from a frame or a request can ask it first.
        """
        check_input(columns, bar_seconds, columns=self._columns, bar_seconds=self._state.bar_seconds)

    def require_same_contract(self, other: PreprocessingPipeline) -> None:
        """Raise PreprocessingError naming both versions and what differs, unless the contracts are equal."""
        differences = contract_differences(self.contract, other.contract)
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise PreprocessingError(
                f"preprocessing {self.version or '(not saved)'} and {other.version or '(not saved)'} have different "
                f"contracts: {'; '.join(differences[:5])}{more}",
                "use the pipeline the model was trained with, or train the model again",
            )

    def to_state(self) -> dict[str, Any]:
        """The fitted pipeline as plain values and float64 arrays; ``from_state`` gives it back."""
        state = self._state
        arrays: list[dict[str, np.ndarray]] = [{} for _ in self._features]
        arrays += [{name: a.copy() for name, a in step.items()} for step in state.arrays]
        steps = [
            {"name": step.name, "params": dict(step.params), "arrays": own}
            for step, own in zip(self.steps, arrays, strict=True)
        ]
        return {
            "schema": STATE_SCHEMA,
            "code_version": CODE_VERSION,
            "steps": steps,
            "input": {"bar_seconds": state.bar_seconds, "masked": state.masked, "prices": self.prices},
            "fit": {"start": state.start, "stop": state.stop, "data_sha256": state.data_sha256},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PreprocessingPipeline:
        """Rebuild what ``to_state`` gave; PreprocessingError for another schema, field, shape or code version."""
        _check_state(state)
        steps = state["steps"]
        pipeline = cls([StepSpec(step["name"], step["params"]) for step in steps], prices=state["input"]["prices"])
        given = [step["arrays"] for step in steps]
        width = int(pipeline._scaled(state["input"]["bar_seconds"]).sum())
        for step, arrays in zip(pipeline.steps, given, strict=True):
            _check_arrays(step.name, arrays, width)
        pipeline._fitted = _Fitted(
            bar_seconds=state["input"]["bar_seconds"],
            masked=state["input"]["masked"],
            start=state["fit"]["start"],
            stop=state["fit"]["stop"],
            data_sha256=state["fit"]["data_sha256"],
            arrays=tuple({name: a.copy() for name, a in own.items()} for own in given[len(pipeline._features) :]),
        )
        return pipeline

    @property
    def _state(self) -> _Fitted:
        if self._fitted is None:
            raise PreprocessingError("the preprocessing pipeline is not fitted", "call fit(bars, rows) first")
        return self._fitted

    @property
    def _columns(self) -> list[str]:
        return columns_of([(step.name, step.params) for step in self._features])

    def _outputs(self, bar_seconds: int) -> list[tuple[str, str]]:
        return [o for step in self._features for o in FEATURES[step.name].outputs(step.params, bar_seconds)]

    def _scaled(self, bar_seconds: int) -> np.ndarray:
        """[F] bool: which features the transforms act on."""
        return np.array([unit not in UNSCALED_UNITS for _, unit in self._outputs(bar_seconds)])

    def _usable_rows(self, bars: Bars, asset: int) -> np.ndarray:
        """Bar indices [n] at which the asset's features are usable."""
        return np.flatnonzero(bars.tradable[:, asset])[self.warmup_bars :]

    def _columns_of(self, bars: Bars, asset: int) -> Iterator[tuple[int | None, np.ndarray]]:
        """Raw values [n] float64 of one feature after another on the usable rows, each with its place among those that
        the transforms act on, or None. All features of a long series at once would not fit memory."""
        outputs = self._outputs(bars.bar_seconds)
        scaled = self._scaled(bars.bar_seconds)
        places = [int(place) if own else None for place, own in zip(np.cumsum(scaled) - 1, scaled, strict=True)]
        if not len(self._usable_rows(bars, asset)):
            yield from ((place, np.empty(0)) for place in places)
            return
        series = _series(bars, asset, np.flatnonzero(bars.tradable[:, asset]))
        columns = iter(zip(outputs, places, strict=True))
        for step in self._features:
            for values in FEATURES[step.name].compute(series, **step.params)[self.warmup_bars :].T:
                (name, _), place = next(columns)
                if not np.isfinite(values).all():
                    row = int(np.argmin(np.isfinite(values)))
                    time = series.timestamps[self.warmup_bars + row]
                    raise PreprocessingError(f"feature '{name}' of {bars.symbols[asset]} is {values[row]} at {time}")
                yield place, np.ascontiguousarray(values)

    def _train_columns(self, past: Bars, start: int) -> Iterator[np.ndarray]:
        """Raw values [N] of each feature that the transforms act on, on the usable rows from ``start`` on, one asset
        after the other."""
        counts = [int((self._usable_rows(past, asset) >= start).sum()) for asset in range(past.num_assets)]
        if sum(counts) < 2:
            raise PreprocessingError(
                f"{sum(counts)} usable train rows from bar {start} to {past.num_bars} after {self.warmup_bars} bars of "
                "warm-up, need at least 2",
                "give more train rows or choose features with shorter windows",
            )
        for parts in zip(*(self._columns_of(past, asset) for asset in range(past.num_assets)), strict=True):
            if parts[0][0] is not None:
                own = zip(parts, counts, strict=True)
                yield np.concatenate([values[len(values) - count :] for (_, values), count in own])

    def _fit_column(self, values: np.ndarray) -> list[dict[str, float]]:
        """What each of the transforms learns from the train values [N] of one feature."""
        fitted = []
        for step in self._transforms:
            transform = TRANSFORMS[step.name]
            numbers = transform.fit(values, step.params)
            values = transform.apply(values, numbers, step.params)
            fitted.append(numbers)
        return fitted


def _series(bars: Bars, asset: int, rows: np.ndarray) -> AssetSeries:
    return asset_series(
        symbol=bars.symbols[asset],
        timestamps=bars.timestamps[rows],
        open=bars.open[rows, asset],
        high=bars.high[rows, asset],
        low=bars.low[rows, asset],
        close=bars.close[rows, asset],
        volume=bars.volume[rows, asset],
        bar_seconds=bars.bar_seconds,
        signals={name: values[rows, asset] for name, values in bars.signals.items()},
    )


def _given(bars: Bars, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of ``columns`` that the bars have."""
    known = {name: getattr(bars, name) for name in COLUMNS} | dict(bars.signals)
    return {name: known[name] for name in columns if name in known}


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise PreprocessingError unless the state has the fields of STATE_SCHEMA with the right types."""
    if not isinstance(state, Mapping) or state.get("schema") != STATE_SCHEMA:
        raise PreprocessingError("the preprocessing state has another schema", f"this version reads {STATE_SCHEMA}")
    if state.get("code_version") != CODE_VERSION:
        raise PreprocessingError(
            f"the pipeline was fitted by feature code {state.get('code_version')}, this is {CODE_VERSION}",
            "fit the pipeline again, its features would have other values",
        )
    _check_fields(state, {"schema": int, "code_version": int, "steps": list, "input": dict, "fit": dict}, "state")
    _check_fields(state["input"], {"bar_seconds": int, "masked": bool, "prices": str}, "input")
    _check_fields(state["fit"], {"start": int, "stop": int, "data_sha256": str}, "fit")
    for step in state["steps"]:
        _check_fields(step, {"name": str, "params": dict, "arrays": dict}, "steps")


def _check_fields(given: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(given, dict) or set(given) != set(fields):
        raise PreprocessingError(f"the preprocessing state has other fields than {', '.join(fields)} in '{where}'")
    for name, kind in fields.items():
        if type(given[name]) is not kind:
            raise PreprocessingError(
                f"field '{name}' of '{where}' is {type(given[name]).__name__}, not {kind.__name__}"
            )


def _check_arrays(step: str, arrays: Mapping[str, Any], width: int) -> None:
    wanted = TRANSFORMS[step].arrays if step in TRANSFORMS else ()
    if set(arrays) != set(wanted):
        raise PreprocessingError(f"step '{step}' of the preprocessing state has the arrays {sorted(arrays)}")
    for name, array in arrays.items():
        sound = isinstance(array, np.ndarray) and array.dtype == np.float64 and array.shape == (width,)
        if not sound or not np.isfinite(array).all() or (name == "scale" and not (array > 0.0).all()):
            raise PreprocessingError(f"array '{name}' of step '{step}' is not {width} finite numbers of type float64")
