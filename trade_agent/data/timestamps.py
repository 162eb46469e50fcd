"""Time columns of any common spelling -> datetime64[ns] in UTC.

A column of dates, or of midnights only, names sessions: it stays at 00:00 UTC whatever the time zone. Any other time
without an offset is local time in ``timezone``.
"""

import re

import numpy as np
import pandas as pd

from trade_agent.errors import DataError

EPOCH_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_CLOCK = (
    r"(?:[T\s]+(?P<hour>\d{1,2})(?::?(?P<minute>\d{2}))?(?::?(?P<second>\d{2}))?(?:[.,](?P<fraction>\d{1,9}))?"
    r"\s*-?\s*(?P<half>[AaPp][Mm])?)?\s*(?P<offset>Z|UTC|[+-]\d{2}:?\d{2})?$"
)
_DATES = {
    "year first": r"^(?P<year>\d{4})[-/.]?(?P<month>\d{2}|\d(?=[-/.]))[-/.]?(?P<day>\d{1,2})",
    "year last": r"^(?P<a>\d{1,2})(?P<mark>[-/.])(?P<b>\d{1,2})[-/.](?P<year>\d{4})",
    "day, month name": r"^(?P<day>\d{1,2})[-/ ](?P<name>[A-Za-z]{3,9})[-/ ,]+(?P<year>\d{4})",
    "month name, day": r"^(?P<name>[A-Za-z]{3,9})[- ]+(?P<day>\d{1,2}),?[- ]+(?P<year>\d{4})",
}
_SET_FORMAT = "set data.time_format, e.g. data.time_format='%d/%m/%Y %H:%M' (or s, ms, us, ns for epoch numbers)"


def parse_times(
    values: pd.Series, *, time_format: str | None, timezone: str, groups: pd.Series | None = None
) -> np.ndarray:
    """[n] datetime64[ns], UTC.

    values: numbers (epoch s/ms/us/ns, or digits such as 20170131), datetimes or texts.
    time_format: strptime format or an epoch unit.
    groups: [n] symbols; within one of them repeated local times at the end of summer time are told apart by their
        order.

    Raises DataError for a value that is not a time, for day and month that cannot be told apart, for an unknown zone
    and for local times that its clock changes make ambiguous or impossible.
    """
    values = values.reset_index(drop=True)
    missing = np.flatnonzero(values.isna().to_numpy())
    if len(missing):
        raise DataError(
            f"row {missing[0] + 1} of the data has no time",
            "remove that row or name the right column: data.columns.time=...",
        )
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        wall = values.dt.tz_localize(None)
        return _utc(wall, values.dt.tz_convert("UTC").dt.tz_localize(None))
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _localize(values, timezone, groups)
    codes, uniques = pd.factorize(values)
    wall, instants = _parse_unique(pd.Series(uniques), time_format)
    wall = wall.take(codes).reset_index(drop=True)
    if instants is None:
        return _localize(wall, timezone, groups)
    return _utc(wall, instants.take(codes).reset_index(drop=True))


def _ns(values: pd.Series) -> np.ndarray:
    return values.to_numpy().astype("datetime64[ns]")


def _dates_only(wall: pd.Series) -> bool:
    return bool((wall == wall.dt.normalize()).all())


def _utc(wall: pd.Series, instants: pd.Series) -> np.ndarray:
    """The instants; but session labels (every local time is midnight) keep their local date."""
    return _ns(wall) if _dates_only(wall) else _ns(instants)


def _parse_unique(values: pd.Series, time_format: str | None) -> tuple[pd.Series, pd.Series | None]:
    """Local times, and the instants in UTC when the values fix them (epoch numbers, offsets), else None."""
    if time_format in EPOCH_UNITS:
        return _epoch(values, EPOCH_UNITS[time_format])
    if time_format is not None:
        return _by_format(values, time_format)
    texts = values.astype(str).str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().all():
        return _numeric(texts, numbers)
    if re.match(r"\d{4}-\d{2}-\d{2}", texts.iloc[0]):
        parsed = _iso(texts)
        if parsed is not None:
            return parsed
    return _text(texts)


def _epoch(values: pd.Series, unit_ns: int) -> tuple[pd.Series, pd.Series]:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        raise DataError(f"{values[numbers.isna()].iloc[0]!r} is not an epoch number", _SET_FORMAT)
    if pd.api.types.is_integer_dtype(numbers.dtype):
        nanos = numbers.to_numpy().astype(np.int64) * unit_ns
    else:
        # The whole part is exact in int64; only the fraction goes through floating point.
        whole = np.floor(numbers.to_numpy())
        nanos = whole.astype(np.int64) * unit_ns + np.rint((numbers.to_numpy() - whole) * unit_ns).astype(np.int64)
    stamps = pd.Series(nanos.astype("datetime64[ns]"))
    return stamps, stamps


def _by_format(values: pd.Series, time_format: str) -> tuple[pd.Series, pd.Series | None]:
    aware = "%z" in time_format
    try:
        parsed = pd.to_datetime(values.astype(str).str.strip(), format=time_format, utc=aware)
    except ValueError as error:
        reason = str(error).split(". You might")[0].split("\n")[0]
        raise DataError(
            f"data.time_format={time_format!r} does not fit the file: {reason}", "correct the format"
        ) from error
    if not aware:
        return parsed, None
    instants = parsed.dt.tz_localize(None)
    return instants, instants


def _numeric(texts: pd.Series, numbers: pd.Series) -> tuple[pd.Series, pd.Series | None]:
    """Digits: a date written without separators where it reads as one, else seconds to nanoseconds since 1970 by
    their size."""
    for length, layout in ((8, "%Y%m%d"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S")):
        if texts.str.fullmatch(rf"(?:19|20)\d{{{length - 2}}}").all():
            parsed = pd.to_datetime(texts, format=layout, errors="coerce")
            if parsed.notna().all():
                return parsed, None
    low, high = float(numbers.min()), float(numbers.max())
    # Each unit covers the years 1973 to 2286: the ranges do not overlap.
    for unit, floor in (("s", 1e8), ("ms", 1e11), ("us", 1e14), ("ns", 1e17)):
        if floor <= low and high < floor * 100:
            return _epoch(numbers, EPOCH_UNITS[unit])
    raise DataError(
        f"the time column holds numbers from {low:g} to {high:g}, which are no dates and no epoch of one unit",
        _SET_FORMAT,
    )


def _iso(texts: pd.Series) -> tuple[pd.Series, pd.Series | None] | None:
    offsets = texts.str.contains(r"(?:Z|[+-]\d{2}:?\d{2})$", regex=True)
    try:
        if not offsets.any():
            return pd.to_datetime(texts, format="ISO8601"), None
        _refuse_mixed_offsets(texts, offsets)
        wall = pd.to_datetime(texts.str.replace(r"\s*(?:Z|[+-]\d{2}:?\d{2})$", "", regex=True), format="ISO8601")
        return wall, pd.to_datetime(texts, format="ISO8601", utc=True).dt.tz_localize(None)
    except ValueError:
        return None


def _refuse_mixed_offsets(texts: pd.Series, offsets: pd.Series) -> None:
    if not offsets.all():
        raise DataError(
            f"some times have an offset ({texts[offsets].iloc[0]!r}) and some have none ({texts[~offsets].iloc[0]!r})",
            "write all of them in one way",
        )


def _text(texts: pd.Series) -> tuple[pd.Series, pd.Series | None]:
    for pattern in _DATES.values():
        if re.match(pattern + _CLOCK, texts.iloc[0]):
            parts = texts.str.extract(re.compile(pattern + _CLOCK))
            break
    else:
        raise DataError(f"{texts.iloc[0]!r} is not a time that is recognised", _SET_FORMAT)
    bad = parts["year"].isna()
    if bad.any():
        raise DataError(f"{texts[bad].iloc[0]!r} is not written like the first time, {texts.iloc[0]!r}", _SET_FORMAT)
    day, month = _day_and_month(parts, texts)
    wall = _assemble(parts, day, month, texts)
    offsets = parts["offset"].notna()
    if not offsets.any():
        return wall, None
    _refuse_mixed_offsets(texts, offsets)
    return wall, wall - parts["offset"].map(_offset)


def _day_and_month(parts: pd.DataFrame, texts: pd.Series) -> tuple[pd.Series, pd.Series]:
    if "name" in parts:
        month = parts["name"].str[:3].str.lower().map(_MONTHS)
        if month.isna().any():
            raise DataError(f"{texts[month.isna()].iloc[0]!r} has an unknown month", _SET_FORMAT)
        return parts["day"].astype(int), month.astype(int)
    if "day" in parts:
        return parts["day"].astype(int), parts["month"].astype(int)
    first, second = parts["a"].astype(int), parts["b"].astype(int)
    day_first, month_first = bool((first > 12).any()), bool((second > 12).any())
    if day_first and month_first:
        raise DataError(
            f"dates are day first in {texts[first > 12].iloc[0]!r} and month first in {texts[second > 12].iloc[0]!r}",
            _SET_FORMAT,
        )
    # dd.mm.yyyy is the only order in use with dots.
    if day_first or (not month_first and (parts["mark"] == ".").all()):
        return first, second
    if month_first:
        return second, first
    mark = parts["mark"].iloc[0]
    raise DataError(
        f"day and month cannot be told apart in dates such as {texts.iloc[0]!r}: no value is above 12",
        f"set data.time_format='%d{mark}%m{mark}%Y...' or '%m{mark}%d{mark}%Y...'",
    )


def _assemble(parts: pd.DataFrame, day: pd.Series, month: pd.Series, texts: pd.Series) -> pd.Series:
    clock = {name: parts[name].fillna("0").astype(int) for name in ("hour", "minute", "second")}
    half = parts["half"].str.lower()
    hour = clock["hour"].where(half.isna(), clock["hour"] % 12 + 12 * (half == "pm"))
    calendar = pd.DataFrame({"year": parts["year"].astype(int), "month": month, "day": day})
    dates = pd.to_datetime(calendar, errors="coerce")
    bad = dates.isna() | (hour > 23) | (clock["minute"] > 59) | (clock["second"] > 59)
    if bad.any():
        raise DataError(f"{texts[bad].iloc[0]!r} is not a possible time", _SET_FORMAT)
    seconds = (hour * 3600 + clock["minute"] * 60 + clock["second"]).to_numpy().astype("timedelta64[s]")
    nanos = parts["fraction"].fillna("0").str.ljust(9, "0").astype("int64").to_numpy().astype("timedelta64[ns]")
    return pd.Series(_ns(dates) + seconds + nanos)


def _offset(text: str) -> pd.Timedelta:
    if text in ("Z", "UTC"):
        return pd.Timedelta(0)
    sign = -1 if text[0] == "-" else 1
    return sign * pd.Timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))


def _localize(wall: pd.Series, timezone: str, groups: pd.Series | None) -> np.ndarray:
    if _dates_only(wall):
        return _ns(wall)
    out = np.empty(len(wall), dtype="datetime64[ns]")
    positions = (
        [np.arange(len(wall))]
        if groups is None
        else list(groups.reset_index(drop=True).groupby(groups.to_numpy()).indices.values())
    )
    for index in positions:
        local = pd.DatetimeIndex(_ns(wall)[index])
        # The clock's repeated hour can be resolved only in the order in which it happened.
        reverse = len(local) > 1 and local[0] > local[-1]
        local = local[::-1] if reverse else local
        try:
            utc = (
                local.tz_localize(timezone, ambiguous="infer", nonexistent="raise").tz_convert("UTC").tz_localize(None)
            )
        except (KeyError, LookupError) as error:
            raise DataError(
                f"data.timezone={timezone!r} is not a time zone", "use an IANA name, e.g. UTC, America/New_York"
            ) from error
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"times do not fit data.timezone={timezone}: {reason}",
                "set the data.timezone in which the file was written (often UTC)",
            ) from error
        out[index] = utc.to_numpy().astype("datetime64[ns]")[:: -1 if reverse else 1]
    return out
