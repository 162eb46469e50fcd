"""Trading calendars: which one fits the bars, which bars it expects, how many of them make a year.

Besides the names of exchange_calendars there are three of our own kind:
"24/7" (crypto), "24/5" (foreign exchange: Sunday 17:00 to Friday 17:00 in New York) and "observed" (an exchange that
is not
known: the sessions seen in the data are all that is expected).
Times are UTC; a daily bar carries its session's date at 00:00.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from trade_agent.errors import DataError

DAY_SECONDS = 86_400
DAYS_PER_YEAR = 365.2425
OWN_CALENDARS = ("24/7", "24/5", "observed")

_CURRENCIES = "EUR|USD|GBP|JPY|CHF|AUD|NZD|CAD|SEK|NOK|DKK|PLN|HUF|CZK|TRY|ZAR|MXN|SGD|HKD|CNH|XAU|XAG"
_FX_PAIR = re.compile(rf"(?<![A-Z])({_CURRENCIES})[/_.-]?({_CURRENCIES})(?![A-Z])", re.IGNORECASE)
_CRYPTO = re.compile(r"(?<![A-Z])(BTC|XBT|ETH|XRP|LTC|SOL|BNB|ADA|DOGE|DOT)|(USDT|USDC|BUSD)(?![A-Z])", re.IGNORECASE)


def check_calendar_name(name: str) -> None:
    """DataError when ``name`` is neither one of OWN_CALENDARS nor known to exchange_calendars."""
    if name in OWN_CALENDARS:
        return
    import exchange_calendars  # slow to import, and not needed for crypto, FX or observed sessions

    known = exchange_calendars.get_calendar_names()
    if name not in known:
        raise DataError(
            f"data.calendar={name!r} is not known",
            f"use {', '.join(OWN_CALENDARS)} or an exchange code such as XNYS, XLON",
        )


# One calendar takes a third of a second to build, and every asset of a run asks for part of the same range.
_schedules: dict[str, pd.DataFrame] = {}


def _schedule(name: str, first: str, last: str) -> pd.DataFrame:
    """Sessions first .. last (dates) with columns open, break_start, break_end, close (UTC), indexed by naive date."""
    # A week more on each side: the library wants start before end, and the range need not begin on a session.
    start, end = pd.Timestamp(first) - pd.Timedelta(days=7), pd.Timestamp(last) + pd.Timedelta(days=7)
    known = _schedules.get(name)
    if known is not None:
        if known.attrs["start"] <= start and end <= known.attrs["end"]:
            return known.loc[first:last]
        start, end = min(start, known.attrs["start"]), max(end, known.attrs["end"])
    schedule = _build_schedule(name, start, end)
    schedule.attrs.update(start=start, end=end)
    _schedules[name] = schedule
    return schedule.loc[first:last]


def _build_schedule(name: str, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    import exchange_calendars

    try:
        with warnings.catch_warnings():
            # The library itself still calls what pandas 3.1 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Without start= it covers the last twenty years only.
            calendar: Any = exchange_calendars.get_calendar(name, start=start, end=end)
            return calendar.schedule.copy()
    except (exchange_calendars.errors.CalendarError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"calendar {name} has no sessions for {start:%Y-%m-%d} to {end:%Y-%m-%d}: {reason}",
            "set data.calendar=observed",
        ) from error


def _sessions_of(name: str, stamps: np.ndarray) -> pd.DataFrame:
    days = stamps.astype("datetime64[D]")
    return _schedule(name, str(days.min()), str(days.max()))


def _grid(first: np.datetime64, last: np.datetime64, step_seconds: int) -> np.ndarray:
    step = np.timedelta64(step_seconds, "s")
    return np.arange(first, last + step, step).astype("datetime64[ns]")


def _fx_open(stamps: np.ndarray, step_seconds: int) -> np.ndarray:
    """[n] bool: the FX week is open at these moments. Daily or longer bars: Monday to Friday."""
    weekday = (stamps.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    if step_seconds >= DAY_SECONDS:
        return weekday < 5
    local = pd.DatetimeIndex(stamps).tz_localize("UTC").tz_convert("America/New_York")
    # Shifted by seven hours the week runs from Monday 00:00 to Friday 24:00 in New York time, in summer and in winter.
    shifted = local.tz_localize(None) + pd.Timedelta(hours=7)
    return np.asarray(shifted.day_of_week < 5)


def _utc_ns(times: pd.Series) -> np.ndarray:
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[ns]")


def _exchange_grid(name: str, stamps: np.ndarray, bar_seconds: int) -> np.ndarray:
    """Opening times of the bars of each session between the first and the last stamp."""
    schedule = _sessions_of(name, stamps)
    if bar_seconds >= DAY_SECONDS:
        return schedule.index.to_numpy().astype("datetime64[ns]")
    parts: list[np.ndarray] = []
    opens, closes = _utc_ns(schedule["open"]), _utc_ns(schedule["close"])
    pauses, resumes = _utc_ns(schedule["break_start"]), _utc_ns(schedule["break_end"])
    for start, pause, resume, stop in zip(opens, pauses, resumes, closes, strict=True):
        edges = [(start, stop)] if np.isnat(pause) else [(start, pause), (resume, stop)]
        parts.extend(np.arange(begin, end, np.timedelta64(bar_seconds, "s")) for begin, end in edges)
    return np.concatenate(parts) if parts else stamps[:0]


def expected_bars(name: str, stamps: np.ndarray, bar_seconds: int) -> np.ndarray:
    """Moments [m] at which the calendar expects a bar, from the first to the last of ``stamps`` ([n], sorted, UTC).

    "observed" expects nothing beyond the stamps themselves. Bars longer than a day are expected at their own step
    only.
    """
    if len(stamps) == 0 or name == "observed" or bar_seconds > DAY_SECONDS:
        return stamps
    if name in ("24/7", "24/5"):
        grid = _grid(stamps[0], stamps[-1], bar_seconds)
        return grid if name == "24/7" else grid[_fx_open(grid, bar_seconds)]
    grid = _exchange_grid(name, stamps, bar_seconds)
    if bar_seconds < DAY_SECONDS:
        # A file may stamp its bars with their end, or count hours from :00 rather than from the opening at :30.
        step = np.timedelta64(bar_seconds, "s")
        phase = (stamps[0] - stamps[0].astype("datetime64[D]")) % step
        floored = grid - (grid - grid.astype("datetime64[D]")) % step + phase
        candidates = [grid, grid + step, floored]
        grid = max(candidates, key=lambda candidate: np.isin(stamps, candidate).sum())
        return grid[(grid >= stamps[0]) & (grid <= stamps[-1])]
    return grid


def missing_bars(expected: np.ndarray, stamps: np.ndarray, bar_seconds: int) -> np.ndarray:
    """The moments of ``expected`` without a bar in ``stamps``; daily bars are compared by date."""
    return expected[~_present(expected, stamps, bar_seconds)]


def off_session_bars(expected: np.ndarray, stamps: np.ndarray, bar_seconds: int) -> np.ndarray:
    """[n] bool: bars at moments that are not expected; compared like ``missing_bars``."""
    return ~_present(stamps, expected, bar_seconds)


def _present(moments: np.ndarray, among: np.ndarray, bar_seconds: int) -> np.ndarray:
    unit = "datetime64[D]" if bar_seconds >= DAY_SECONDS else "datetime64[ns]"
    return np.isin(moments.astype(unit), among.astype(unit))


def infer_calendar(stamps: np.ndarray, bar_seconds: int, names: Sequence[str] = ()) -> str:
    """The calendar that the bars follow: "24/7", "24/5", "XNYS" or "observed".

    stamps: [n] datetime64[ns] UTC, sorted. names: symbols, used only where the times alone leave it open.
    """
    weekday = (stamps.astype("datetime64[D]").astype(np.int64) + 3) % 7
    crypto = any(_CRYPTO.search(name) for name in names)
    fx = bool(names) and all(_FX_PAIR.search(name) for name in names) and not crypto
    if len(stamps) and (np.mean(weekday == 5) > 0.10 or (crypto and np.ptp(weekday) == len(set(weekday.tolist())) - 1)):
        return "24/7"
    if bar_seconds >= DAY_SECONDS:
        return "24/5" if fx else _infer_daily(stamps, bar_seconds)
    hours = np.unique(stamps.astype("datetime64[h]").astype(np.int64) % 24)
    open_share = float(np.mean(_fx_open(stamps, bar_seconds))) if len(stamps) else 0.0
    round_the_clock = len(hours) >= 23 or bar_seconds >= 4 * 3600
    if open_share > 0.98 and (fx or round_the_clock):
        return "24/5"
    if fx and open_share > 0.9:
        return "24/5"
    return "XNYS" if _fits_us_hours(stamps, bar_seconds) else "observed"


def _infer_daily(stamps: np.ndarray, bar_seconds: int) -> str:
    if bar_seconds > DAY_SECONDS or len(stamps) < 5:
        return "observed"
    sessions = _sessions_of("XNYS", stamps).index.to_numpy().astype("datetime64[D]")
    days = np.unique(stamps.astype("datetime64[D]"))
    inside = np.isin(days, sessions).mean()
    covered = np.isin(sessions, days).mean()
    # A foreign exchange misses about nine US sessions a year and trades on as many US holidays.
    return "XNYS" if inside > 0.99 and covered > 0.90 else "observed"


def _fits_us_hours(stamps: np.ndarray, bar_seconds: int) -> bool:
    seconds = stamps.astype("datetime64[s]").astype(np.int64) % DAY_SECONDS
    if ((seconds >= 13 * 3600) & (seconds <= 21 * 3600 + 1800)).mean() < 0.98:
        return False
    expected = expected_bars("XNYS", stamps, bar_seconds)
    return len(expected) > 0 and bool(np.isin(stamps, expected).mean() > 0.95)


def bars_per_year(name: str, bar_seconds: int, stamps: np.ndarray) -> float:
    """Bars of ``bar_seconds`` in a year of this calendar; ``stamps`` [T] decide for "observed" and for unusual
    exchanges."""
    if bar_seconds > 1.5 * DAY_SECONDS:
        return DAYS_PER_YEAR * DAY_SECONDS / bar_seconds
    if name == "24/7":
        return 365.0 * DAY_SECONDS / bar_seconds
    if name == "24/5":
        return 365.0 * 5 / 7 * DAY_SECONDS / bar_seconds
    if name == "observed":
        return _observed_per_year(stamps)
    sessions, session_seconds = _session_figures(name, stamps)
    return sessions if bar_seconds >= DAY_SECONDS else sessions * float(np.ceil(session_seconds / bar_seconds))


def _session_figures(name: str, stamps: np.ndarray) -> tuple[float, float]:
    """Sessions a year and trading seconds in a session."""
    if name == "XNYS":
        return 252.0, 6.5 * 3600
    # Five years around the end of the data, so that a short file does not decide the length of a year.
    last = pd.Timestamp(stamps[-1]).normalize()
    schedule = _schedule(name, str((last - pd.Timedelta(days=1826)).date()), str((last - pd.Timedelta(days=1)).date()))
    length = (schedule["close"] - schedule["open"]).dt.total_seconds()
    breaks = (schedule["break_end"] - schedule["break_start"]).dt.total_seconds().fillna(0.0)
    return float(round(len(schedule) / 5)), float((length - breaks).median())


def _observed_per_year(stamps: np.ndarray) -> float:
    if len(stamps) < 2:
        return DAYS_PER_YEAR
    step = float(np.median(np.diff(stamps).astype(np.int64))) / 1e9
    weeks = (stamps.astype("datetime64[D]").astype(np.int64) + 3) // 7
    _, inverse, counts = np.unique(weeks, return_inverse=True, return_counts=True)
    if step <= DAY_SECONDS and len(counts) >= 2:
        # The week that the median bar lives in: neither a sparse early history nor a hole thins the figure out.
        usual = float(np.median(counts[inverse]))
        full = counts[1:-1][counts[1:-1] >= usual / 2]
        if step == DAY_SECONDS and len(full):
            usual = float(full.mean())  # holidays belong into the figure, sparse weeks and cut ones at the ends do not
        return usual * DAYS_PER_YEAR / 7
    span = (stamps[-1] - stamps[0]).astype(np.int64) / 1e9
    return float((len(stamps) - 1) * DAYS_PER_YEAR * DAY_SECONDS / span)
