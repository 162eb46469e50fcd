"""The table of causal features: what a pipeline's feature step may be called, and what it yields.

Every feature is a function of ONE asset's bars up to and including bar t, scale-free, float64 [T] -> [T, k].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_agent.preprocessing import calendars, indicators, returns, volatility, volume
from trade_agent.preprocessing.series import COLUMNS, signal

Params = Mapping[str, Any]

# Units that are bounded by nature and stay as they are: scalers leave them alone.
CYCLE, FLAG = "cycle", "flag"
UNSCALED_UNITS = (CYCLE, FLAG)


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One row of FEATURES.

    compute(series, **params) -> [T, k] float64; outputs(params, bar_seconds) -> k pairs (name, unit); warmup(params) ->
    the number of first bars whose values are not usable; ``columns``: what it reads; ``defaults``: every parameter, a
    whole number, a number, a text or a tuple of whole numbers; ``least``: the smallest value a whole number may take;
    problem(params) -> what is wrong with the parameters taken together, "" when nothing is.
    """

    compute: Callable[..., np.ndarray]
    outputs: Callable[[Params, int], list[tuple[str, str]]]
    warmup: Callable[[Params], int]
    columns: tuple[str, ...]
    defaults: Mapping[str, int | float | str | tuple[int, ...]]
    least: int = 1
    problem: Callable[[Params], str] = lambda params: ""


def _fixed(*outputs: tuple[str, str]) -> Callable[[Params, int], list[tuple[str, str]]]:
    return lambda params, bar_seconds: list(outputs)


def _each(stem: str, key: str, unit: str) -> Callable[[Params, int], list[tuple[str, str]]]:
    return lambda params, bar_seconds: [(f"{stem}_{value}", unit) for value in params[key]]


def _named(key: str, *stems: tuple[str, str]) -> Callable[[Params, int], list[tuple[str, str]]]:
    return lambda params, bar_seconds: [(f"{stem}_{params[key]}", unit) for stem, unit in stems]


def _macd_outputs(params: Params, bar_seconds: int) -> list[tuple[str, str]]:
    tail = f"{params['fast']}_{params['slow']}_{params['signal']}"
    return [(f"macd_{tail}", "share of price"), (f"macd_histogram_{tail}", "share of price")]


def _bollinger_outputs(params: Params, bar_seconds: int) -> list[tuple[str, str]]:
    tail = f"{params['window']}_{params['deviations']:g}"
    return [(f"bollinger_percent_b_{tail}", "fraction"), (f"bollinger_width_{tail}", "share of price")]


def _stochastic_outputs(params: Params, bar_seconds: int) -> list[tuple[str, str]]:
    window, smooth = params["window"], params["smooth"]
    return [(f"stochastic_k_{window}", "fraction"), (f"stochastic_d_{window}_{smooth}", "fraction")]


def _calendar_outputs(params: Params, bar_seconds: int) -> list[tuple[str, str]]:
    return [(f"{cycle}_{f}", CYCLE) for cycle in calendars.calendar_cycles(bar_seconds) for f in ("sin", "cos")]


_LOG_RETURN = "log return"
_VOLATILITY = "log return, standard deviation per bar"

FEATURES: dict[str, Feature] = {
    "log_return": Feature(
        compute=returns.log_return,
        outputs=_each("log_return", "lags", _LOG_RETURN),
        warmup=lambda params: max(params["lags"]),
        columns=("close",),
        defaults={"lags": (1, 5, 20)},
    ),
    "overnight_gap": Feature(
        compute=returns.overnight_gap,
        outputs=_fixed(("overnight_gap", _LOG_RETURN)),
        warmup=lambda params: 1,
        columns=("open", "close"),
        defaults={},
    ),
    "intraday_return": Feature(
        compute=returns.intraday_return,
        outputs=_fixed(("intraday_return", _LOG_RETURN)),
        warmup=lambda params: 0,
        columns=("open", "close"),
        defaults={},
    ),
    "bar_range": Feature(
        compute=returns.bar_range,
        outputs=_fixed(("bar_range", _LOG_RETURN)),
        warmup=lambda params: 0,
        columns=("high", "low"),
        defaults={},
    ),
    "realised_volatility": Feature(
        compute=volatility.realised_volatility,
        outputs=_each("realised_volatility", "windows", _VOLATILITY),
        warmup=lambda params: max(params["windows"]),
        columns=("close",),
        defaults={"windows": (20,)},
    ),
    "parkinson_volatility": Feature(
        compute=volatility.parkinson_volatility,
        outputs=_each("parkinson_volatility", "windows", _VOLATILITY),
        warmup=lambda params: max(params["windows"]) - 1,
        columns=("high", "low"),
        defaults={"windows": (20,)},
    ),
    "garman_klass_volatility": Feature(
        compute=volatility.garman_klass_volatility,
        outputs=_each("garman_klass_volatility", "windows", _VOLATILITY),
        warmup=lambda params: max(params["windows"]) - 1,
        columns=("open", "high", "low", "close"),
        defaults={"windows": (20,)},
    ),
    "yang_zhang_volatility": Feature(
        compute=volatility.yang_zhang_volatility,
        outputs=_each("yang_zhang_volatility", "windows", _VOLATILITY),
        warmup=lambda params: max(params["windows"]),
        columns=("open", "high", "low", "close"),
        defaults={"windows": (20,)},
        least=2,
    ),
    "log_volume_change": Feature(
        compute=volume.log_volume_change,
        outputs=_fixed(("log_volume_change", "log ratio")),
        warmup=lambda params: 1,
        columns=("volume",),
        defaults={},
    ),
    "volume_zscore": Feature(
        compute=volume.volume_zscore,
        outputs=_named("window", ("volume_zscore", "standard deviations")),
        warmup=lambda params: params["window"] - 1,
        columns=("volume",),
        defaults={"window": 20},
        least=2,
    ),
    "dollar_volume": Feature(
        compute=volume.dollar_volume,
        outputs=_named("window", ("dollar_volume", "log ratio to trailing mean")),
        warmup=lambda params: params["window"] - 1,
        columns=("close", "volume"),
        defaults={"window": 20},
        least=2,
    ),
    "obv_slope": Feature(
        compute=volume.obv_slope,
        outputs=_named("window", ("obv_slope", "share of volume")),
        warmup=lambda params: params["window"],
        columns=("close", "volume"),
        defaults={"window": 20},
    ),
    "rsi": Feature(
        compute=indicators.rsi,
        outputs=_named("period", ("rsi", "fraction")),
        warmup=lambda params: indicators.recursive_warmup(params["period"]),
        columns=("close",),
        defaults={"period": 14},
        least=2,
    ),
    "macd": Feature(
        compute=indicators.macd,
        outputs=_macd_outputs,
        warmup=lambda params: indicators.recursive_warmup(max(params["fast"], params["slow"], params["signal"]) // 2),
        columns=("close",),
        defaults={"fast": 12, "slow": 26, "signal": 9},
        least=2,
        problem=lambda params: "" if params["fast"] < params["slow"] else "fast must be below slow",
    ),
    "bollinger": Feature(
        compute=indicators.bollinger,
        outputs=_bollinger_outputs,
        warmup=lambda params: params["window"] - 1,
        columns=("close",),
        defaults={"window": 20, "deviations": 2.0},
        least=2,
        problem=lambda params: "" if params["deviations"] > 0.0 else "deviations must be above 0",
    ),
    "atr": Feature(
        compute=indicators.atr,
        outputs=_named("period", ("atr", "share of price")),
        warmup=lambda params: indicators.recursive_warmup(params["period"]),
        columns=("high", "low", "close"),
        defaults={"period": 14},
        least=2,
    ),
    "adx": Feature(
        compute=indicators.adx,
        outputs=_named("period", ("adx", "fraction"), ("directional_index", "fraction")),
        warmup=lambda params: indicators.recursive_warmup(params["period"]),
        columns=("high", "low", "close"),
        defaults={"period": 14},
        least=2,
    ),
    "stochastic": Feature(
        compute=indicators.stochastic,
        outputs=_stochastic_outputs,
        warmup=lambda params: params["window"] + params["smooth"] - 2,
        columns=("high", "low", "close"),
        defaults={"window": 14, "smooth": 3},
        least=2,
    ),
    "ema_distance": Feature(
        compute=indicators.ema_distance,
        outputs=_each("ema_distance", "spans", _LOG_RETURN),
        warmup=lambda params: indicators.recursive_warmup(max(params["spans"]) // 2),
        columns=("close",),
        defaults={"spans": (20, 50)},
        least=2,
    ),
    "calendar": Feature(
        compute=calendars.calendar,
        outputs=_calendar_outputs,
        warmup=lambda params: 0,
        columns=(),
        defaults={},
    ),
    # A column of the data that is no price, see Bars.signals.
    "signal": Feature(
        compute=signal,
        outputs=lambda params, bar_seconds: [(params["name"], "as in the source")],
        warmup=lambda params: 0,
        columns=(),  # that of its parameter, see columns_of
        defaults={"name": ""},
        problem=lambda params: "" if params["name"] else "name must be a signal of the data",
    ),
}


def columns_of(steps: Sequence[tuple[str, Params]]) -> list[str]:
    """The columns that features (name, params) read together: of open, high, low, close, volume, then signals."""
    read = {column for name, _ in steps for column in FEATURES[name].columns}
    signals = dict.fromkeys(params["name"] for name, params in steps if name == "signal")
    return [*(column for column in COLUMNS if column in read), *signals]
