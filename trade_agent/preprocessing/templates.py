"""Ready-made step lists.

Every model type has the same one on purpose: an agent reads the forecaster's features and a hybrid holds both, so a
parent can be reused only where the contracts are equal. ``minimal`` and ``full`` are for comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence

from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing.specs import StepSpec

# Quantiles first, else one crash sets the standard deviation; clipped, else a later crash saturates a network.
_SCALING = (
    StepSpec("winsorize", {"lower": 0.005, "upper": 0.995}),
    StepSpec("standard_scaler"),
    StepSpec("clip", {"limit": 5.0}),
)

# 18 features on daily bars, 20 within the day.
_DEFAULT = (
    StepSpec("log_return", {"lags": (1, 5, 20)}),
    StepSpec("overnight_gap"),
    StepSpec("intraday_return"),
    StepSpec("realised_volatility", {"windows": (20,)}),
    StepSpec("garman_klass_volatility", {"windows": (20,)}),
    StepSpec("volume_zscore", {"window": 20}),
    StepSpec("rsi", {"period": 14}),
    StepSpec("macd", {"fast": 12, "slow": 26, "signal": 9}),
    StepSpec("bollinger", {"window": 20, "deviations": 2.0}),
    StepSpec("atr", {"period": 14}),
    StepSpec("calendar"),
    *_SCALING,
)

_MINIMAL = (
    StepSpec("log_return", {"lags": (1, 5, 20)}),
    StepSpec("realised_volatility", {"windows": (20,)}),
    *_SCALING,
)

_FULL = (
    StepSpec("log_return", {"lags": (1, 2, 5, 10, 20, 60)}),
    StepSpec("overnight_gap"),
    StepSpec("intraday_return"),
    StepSpec("bar_range"),
    StepSpec("realised_volatility", {"windows": (10, 20, 60)}),
    StepSpec("parkinson_volatility", {"windows": (20,)}),
    StepSpec("garman_klass_volatility", {"windows": (20,)}),
    StepSpec("yang_zhang_volatility", {"windows": (20,)}),
    StepSpec("log_volume_change"),
    StepSpec("volume_zscore", {"window": 20}),
    StepSpec("dollar_volume", {"window": 20}),
    StepSpec("obv_slope", {"window": 20}),
    StepSpec("rsi", {"period": 14}),
    StepSpec("macd", {"fast": 12, "slow": 26, "signal": 9}),
    StepSpec("bollinger", {"window": 20, "deviations": 2.0}),
    StepSpec("atr", {"period": 14}),
    StepSpec("adx", {"period": 14}),
    StepSpec("stochastic", {"window": 14, "smooth": 3}),
    StepSpec("ema_distance", {"spans": (20, 50)}),
    StepSpec("calendar"),
    *_SCALING,
)

TEMPLATES: dict[str, tuple[StepSpec, ...]] = {
    "default": _DEFAULT,
    "minimal": _MINIMAL,
    "full": _FULL,
    "cnn_lstm": _DEFAULT,
    "ppo": _DEFAULT,
    "sac": _DEFAULT,
    "td3": _DEFAULT,
    "hybrid": _DEFAULT,
    "ensemble": _DEFAULT,
}


def template_steps(name: str, signals: Sequence[str] = ()) -> tuple[StepSpec, ...]:
    """The steps of a template, after those for the ``signals`` that the data bring with them.

    PreprocessingError lists the names for an unknown template.
    """
    if name not in TEMPLATES:
        raise PreprocessingError(f"unknown preprocessing template '{name}'", f"choose from: {', '.join(TEMPLATES)}")
    return (*(StepSpec("signal", {"name": signal}) for signal in signals), *TEMPLATES[name])
