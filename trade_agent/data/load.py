"""From a source to validated Bars: read, select, check and repair each asset, then put all of them on one time
axis."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow

from trade_agent.data.bars import PRICE_FIELDS, Bars
from trade_agent.data.calendars import check_calendar_name, infer_calendar
from trade_agent.data.cleaning import Cleaner, clean
from trade_agent.data.frames import SourceFrame, SourceRequest
from trade_agent.data.sources import SOURCES
from trade_agent.data.validation import Finding, SymbolSummary, ValidationReport, iso, resolve_policies
from trade_agent.errors import DataError

SHORT_HISTORY = 0.9


def load_bars(
    *,
    source: str,
    path: str | None,
    symbols: Sequence[str],
    start: str | None,
    end: str | None,
    columns: Mapping[str, str],
    time_format: str | None,
    timezone: str,
    symbol_column: str | None,
    delimiter: str | None,
    calendar: str | None,
    price_side: str,
    adjust: bool,
    policies: Mapping[str, str],
    interval: str | None,
    exchange: str | None,
    num_bars: int | None = None,
    seed: int | None = None,
) -> tuple[Bars, ValidationReport]:
    """Bars of ``symbols`` (all of the source when empty) on the union of their times, and what validation found.

    source: a name of SOURCES. path: a file or folder, for sources that read one. start, end: ISO dates or times in
    UTC, both inclusive (a date as ``end`` includes that day). columns ({field: column name}), time_format, timezone
    (of times without offset), symbol_column, delimiter: settle what a file leaves open. calendar: overrules the
    inferred one. price_side: mid, bid or ask, for files with both. adjust: prices (and split-adjusted volume) by
    adjusted close or factor file; the factors come from the end of the file, so price levels, unlike returns, depend
    on later dividends and splits. policies: {kind: policy}, see validation.KINDS. interval, exchange: for the
    downloaders. num_bars, seed: for the synthetic markets.

    Where an asset has no bar, tradable is False and its values are NaN; nothing is filled and no asset is dropped.
    Raises DataError for anything missing, ambiguous or refused; the message names the option that settles it.
    """
    request = SourceRequest(
        path=path,
        symbols=symbols,
        start=start,
        end=end,
        columns=columns,
        time_format=time_format,
        timezone=timezone,
        symbol_column=symbol_column,
        delimiter=delimiter,
        price_side=price_side,
        adjust=adjust,
        interval=interval,
        exchange=exchange,
        num_bars=num_bars,
        seed=seed,
    )
    states, signals, report = _validated(source, request, calendar=calendar, policies=policies)
    report.raise_if_refused()
    bars = _pivot(states, signals, calendar=report.calendar, bar_seconds=report.bar_seconds)
    del states
    # Arrow, which reads files for pandas, would keep the memory of the rows as they were read to the end of the run.
    pyarrow.default_memory_pool().release_unused()
    return bars, report


def validate_file(
    *,
    source: str,
    path: str | None,
    symbols: Sequence[str],
    start: str | None,
    end: str | None,
    columns: Mapping[str, str],
    time_format: str | None,
    timezone: str,
    symbol_column: str | None,
    delimiter: str | None,
    calendar: str | None,
    price_side: str,
    adjust: bool,
    policies: Mapping[str, str],
    interval: str | None,
    exchange: str | None,
    num_bars: int | None = None,
    seed: int | None = None,
) -> ValidationReport:
    """The report that ``load_bars`` would give for the same arguments; refused findings are listed in it instead of
    raised.

    Raises DataError only where the source cannot be read at all.
    """
    request = SourceRequest(
        path=path,
        symbols=symbols,
        start=start,
        end=end,
        columns=columns,
        time_format=time_format,
        timezone=timezone,
        symbol_column=symbol_column,
        delimiter=delimiter,
        price_side=price_side,
        adjust=adjust,
        interval=interval,
        exchange=exchange,
        num_bars=num_bars,
        seed=seed,
    )
    _, _, report = _validated(source, request, calendar=calendar, policies=policies)
    return report


def _validated(
    source: str, request: SourceRequest, *, calendar: str | None, policies: Mapping[str, str]
) -> tuple[dict[str, Cleaner], tuple[str, ...], ValidationReport]:
    if source not in SOURCES:
        raise DataError(f"data.source={source!r} is not a source", f"use one of {', '.join(SOURCES)}")
    if calendar is not None:
        check_calendar_name(calendar)
    chosen = resolve_policies(policies)
    where = request.path or source
    loaded = SOURCES[source](request)
    groups = _select(loaded, request, where)
    bar_seconds = _median_step(groups, where)
    if calendar is None:
        union = np.unique(np.concatenate([_times(group) for group in groups.values()]))
        calendar = loaded.calendar or infer_calendar(union, bar_seconds, list(groups))
    states = {
        name: clean(
            group, symbol=name, policies=chosen, adjust=request.adjust, calendar=calendar, bar_seconds=bar_seconds
        )
        for name, group in groups.items()
    }
    findings = [*_notes(loaded, states, chosen), *_all_findings(states), *_short_histories(states, chosen)]
    report = ValidationReport(
        source=source,
        path=request.path,
        calendar=calendar,
        bar_seconds=bar_seconds,
        symbols=tuple(_summary(name, state) for name, state in states.items()),
        findings=tuple(findings),
        median_spread_bps=_median_spread(states),
    )
    return states, loaded.signals, report


def _times(frame: pd.DataFrame) -> np.ndarray:
    return frame["time"].to_numpy().astype("datetime64[ns]")


def _bound(text: str, name: str) -> tuple[np.datetime64, bool]:
    """The moment in UTC, and whether the text names a whole day."""
    try:
        moment = pd.Timestamp(text)
    except ValueError as error:
        raise DataError(f"data.{name}={text!r} is not a date", "use e.g. 2020-01-31 or 2020-01-31T12:00") from error
    if moment.tzinfo is not None:
        moment = moment.tz_convert("UTC").tz_localize(None)
    return np.datetime64(moment, "ns"), len(text.strip()) <= 10


def _select(loaded: SourceFrame, request: SourceRequest, where: str) -> dict[str, pd.DataFrame]:
    """{symbol: rows in file order}: the symbols asked for in their order, or all of them sorted."""
    frame, symbols, start, end = loaded.frame, request.symbols, request.start, request.end
    keep = np.ones(len(frame), dtype=bool)
    times = _times(frame)
    if start is not None:
        keep &= times >= _bound(start, "start")[0]
    if end is not None:
        moment, whole_day = _bound(end, "end")
        keep &= times < moment + np.timedelta64(1, "D") if whole_day else times <= moment
    if len(frame) and not keep.any():
        raise DataError(
            f"{where} has no bars from {start} to {end}",
            f"it covers {iso(np.sort(times))[0]} to {iso(np.sort(times)[::-1])[0]}",
        )
    groups = {str(name): rows.drop(columns="symbol") for name, rows in frame[keep].groupby("symbol", sort=True)}
    if not symbols:
        return groups
    if len(symbols) == 1 and not loaded.named:
        return {symbols[0]: next(iter(groups.values()))}
    lower = {name.lower(): name for name in groups}
    missing = [name for name in symbols if name not in groups and name.lower() not in lower]
    if missing:
        raise DataError(f"{where} has no bars of {', '.join(missing)}", f"it has {', '.join(list(groups)[:30])}")
    return {name: groups[name if name in groups else lower[name.lower()]] for name in symbols}


def _median_step(groups: dict[str, pd.DataFrame], where: str) -> int:
    """Seconds; the smallest of the assets' median steps, so that a thinly traded one does not decide."""
    steps = []
    for group in groups.values():
        times = np.unique(_times(group))
        if len(times) > 1:
            steps.append(float(np.median(np.diff(times).astype(np.int64))) / 1e9)
    if not steps:
        raise DataError(f"{where} has fewer than two bars", "give more data")
    return max(1, round(min(steps)))


def _notes(loaded: SourceFrame, states: dict[str, Cleaner], policies: dict[str, str]) -> list[Finding]:
    out = []
    for note in loaded.notes:
        symbol = note.symbol if note.symbol in states or len(states) > 1 else next(iter(states))
        if symbol in states:
            out.append(Finding(note.kind, symbol, note.count, (), policies[note.kind], note.detail))
    return out


def _all_findings(states: dict[str, Cleaner]) -> list[Finding]:
    return [finding for state in states.values() for finding in state.findings]


def _short_histories(states: dict[str, Cleaner], policies: dict[str, str]) -> list[Finding]:
    longest = max(len(state.frame) for state in states.values())
    return [
        Finding(
            "short_history",
            name,
            len(state.frame),
            iso(state.stamps[:1]),
            policies["short_history"],
            f"{len(state.frame)} bars, the longest asset has {longest}",
        )
        for name, state in states.items()
        if len(state.frame) < SHORT_HISTORY * longest
    ]


def _summary(name: str, state: Cleaner) -> SymbolSummary:
    if len(state.frame) == 0:
        raise DataError(
            f"{name}: none of {state.rows_read} rows is usable: {state.findings[0]}", "check the columns and the file"
        )
    return SymbolSummary(name, state.rows_read, len(state.frame), iso(state.stamps[:1])[0], iso(state.stamps[-1:])[0])


def _median_spread(states: dict[str, Cleaner]) -> float | None:
    spreads = [
        state.values("spread_close") / state.values("close")
        for state in states.values()
        if "spread_close" in state.frame
    ]
    return float(np.median(np.concatenate(spreads)) * 1e4) if spreads else None


def _pivot(states: dict[str, Cleaner], signals: tuple[str, ...], *, calendar: str, bar_seconds: int) -> Bars:
    axis = np.unique(np.concatenate([state.stamps for state in states.values()]))
    shape = (len(axis), len(states))
    fields = {name: np.full(shape, np.nan) for name in (*PRICE_FIELDS, "volume", *signals)}
    tradable = np.zeros(shape, dtype=bool)
    for asset, state in enumerate(states.values()):
        rows = np.searchsorted(axis, state.stamps)
        tradable[rows, asset] = True
        for name, values in fields.items():
            values[rows, asset] = state.values(name)
    own = {name: fields.pop(name) for name in signals}
    return Bars(
        timestamps=axis,
        symbols=tuple(states),
        tradable=tradable,
        calendar=calendar,
        bar_seconds=bar_seconds,
        signals=own,
        **fields,
    )
