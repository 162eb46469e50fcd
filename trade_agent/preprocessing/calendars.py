"""Calendar features from the time at which a bar opens (UTC). They are known ahead and look at no price."""

from __future__ import annotations

import numpy as np

from trade_agent.preprocessing.series import AssetSeries

DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS


def calendar_cycles(bar_seconds: int) -> tuple[str, ...]:
    """The cycles that vary for this bar size: the hour only within a day, the weekday only within a week."""
    hour = ("hour",) if bar_seconds < DAY_SECONDS else ()
    weekday = ("weekday",) if bar_seconds < WEEK_SECONDS else ()
    return (*hour, *weekday, "month")


def calendar(series: AssetSeries) -> np.ndarray:
    """Sine and cosine of each cycle of ``calendar_cycles``, [T, 2 * cycles].

    The hour carries its minutes, the weekday begins on Monday, the month in January; all in UTC.
    """
    nanoseconds = series.timestamps.astype("datetime64[ns]").astype(np.int64)
    day_nanoseconds = DAY_SECONDS * 1_000_000_000
    days = np.floor_divide(nanoseconds, day_nanoseconds)
    phases = {
        "hour": np.mod(nanoseconds, day_nanoseconds) / day_nanoseconds,
        "weekday": np.mod(days + 3, 7) / 7.0,  # 1970-01-01 was a Thursday
        "month": np.mod(series.timestamps.astype("datetime64[M]").astype(np.int64), 12) / 12.0,
    }
    columns = []
    for cycle in calendar_cycles(series.bar_seconds):
        angle = 2.0 * np.pi * phases[cycle]
        columns += [np.sin(angle), np.cos(angle)]
    return np.column_stack(columns)
