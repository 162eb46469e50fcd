"""Bars from the network: Yahoo through yfinance, crypto exchanges through ccxt. Both are optional extras.

What the libraries return is converted by pure functions (``bars_from_yahoo``, ``bars_from_candles``).
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from trade_agent.data.frames import SourceFrame, SourceRequest
from trade_agent.errors import DataError

Candle = Sequence[float | None]
_YAHOO_FIELDS = {
    "Open": "open",
    "High": "high",
    "Low": "low",
    "Close": "close",
    "Adj Close": "adj_close",
    "Volume": "volume",
}


def read_yahoo(request: SourceRequest) -> SourceFrame:
    """Yahoo bars of ``symbols`` from ``start`` to ``end`` at ``interval`` (default 1d). DataError offline or for
    unknown symbols.

    Yahoo's prices are split-adjusted already; the adjusted close carries the dividends.
    """
    try:
        import yfinance
    except ImportError as error:
        raise DataError("data.source=yahoo needs yfinance", "pip install 'trade-agent[yahoo]'") from error
    if not request.symbols or not request.start:
        raise DataError(
            "data.source=yahoo needs data.symbols and data.start", "e.g. data.symbols=[AAPL] data.start=2015-01-01"
        )
    end = None
    if request.end is not None:
        # yfinance leaves out its last day; ours is included.
        end = str((_moment(request.end, "end") + pd.Timedelta(days=1)).date())
    table = yfinance.download(
        list(request.symbols),
        start=request.start,
        end=end,
        interval=request.interval or "1d",
        # The library's default would overwrite the close and hide what was adjusted.
        auto_adjust=False,
        actions=False,
        group_by="column",
        multi_level_index=True,
        progress=False,
        threads=False,
    )
    return SourceFrame(bars_from_yahoo(table, request.symbols))


def bars_from_yahoo(table: pd.DataFrame | None, symbols: Sequence[str]) -> pd.DataFrame:
    """yfinance.download(auto_adjust=False, group_by="column") -> the frame of ``SourceFrame``.

    table: index of dates or of zone-aware times, columns (field, ticker). Rows without any price are cells of other
    tickers' sessions and are left out. Raises DataError when a symbol has no rows at all (offline, or unknown to
    Yahoo).
    """
    if table is None or len(table) == 0:
        raise DataError(
            f"Yahoo returned nothing for {', '.join(symbols)}", "check the network, the symbols and the dates"
        )
    index = pd.DatetimeIndex(table.index)
    wall = index.tz_localize(None)
    # A daily bar is labelled with the exchange's midnight: its date is what counts.
    daily = bool((wall == wall.normalize()).all())
    stamps = wall if daily or index.tz is None else index.tz_convert("UTC").tz_localize(None)
    parts = []
    for symbol in symbols:
        if ("Close", symbol) not in table.columns:
            raise DataError(f"Yahoo returned no column for {symbol}", "check the symbol")
        part = pd.DataFrame({"time": stamps.to_numpy().astype("datetime64[ns]"), "symbol": symbol})
        for theirs, ours in _YAHOO_FIELDS.items():
            part[ours] = table[(theirs, symbol)].to_numpy(dtype=np.float64, na_value=np.nan).copy()
        part = part[part[["open", "high", "low", "close"]].notna().any(axis=1)]
        if part.empty:
            raise DataError(f"Yahoo returned no bars for {symbol}", "check the network, the symbol and the dates")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def read_crypto(request: SourceRequest) -> SourceFrame:
    """Candles of ``symbols`` (BTC/USDT) from a ccxt exchange, from ``start`` to ``end`` at ``interval`` (default
    1d)."""
    try:
        import ccxt
    except ImportError as error:
        raise DataError("data.source=crypto needs ccxt", "pip install 'trade-agent[crypto]'") from error
    if not request.exchange or request.exchange not in ccxt.exchanges:
        raise DataError(
            f"data.exchange={request.exchange!r} is not an exchange of ccxt", "use e.g. data.exchange=kraken"
        )
    if not request.symbols or not request.start:
        raise DataError(
            "data.source=crypto needs data.symbols and data.start", "e.g. data.symbols=[BTC/USDT] data.start=2020-01-01"
        )
    exchange: Any = getattr(ccxt, request.exchange)({"enableRateLimit": True})
    interval = request.interval or "1d"
    if interval not in (exchange.timeframes or {}):
        raise DataError(
            f"data.interval={interval!r} is not offered by {request.exchange}",
            f"use one of {', '.join(exchange.timeframes or {})}",
        )
    since = _milliseconds(_moment(request.start, "start"))
    until = _milliseconds(_until(request.end))
    parts = []
    try:
        for symbol in request.symbols:

            def page(start: int, limit: int, symbol: str = symbol) -> list[Candle]:
                return exchange.fetch_ohlcv(symbol, interval, since=start, limit=limit)

            step = int(exchange.parse_timeframe(interval)) * 1000
            candles = fetch_candles(page, since=since, until=until, step=step, limit=500)
            parts.append(bars_from_candles(candles, symbol))
    except ccxt.BaseError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{request.exchange} failed: {reason}", "check the network, the exchange and the symbols"
        ) from error
    return SourceFrame(pd.concat(parts, ignore_index=True), calendar="24/7")


def fetch_candles(
    fetch: Callable[[int, int], Sequence[Candle]], *, since: int, until: int, step: int, limit: int
) -> list[Candle]:
    """All candles with since <= time <= until, page by page. Times in milliseconds.

    fetch(start, limit) returns candles [time, open, high, low, close, volume] from ``start`` on, oldest first. An empty
    page is a stretch without trades (or before the listing), so the next page is tried ``limit`` steps on. A candle
    that is still open (its end lies after ``until``) is left out.
    """
    out: list[Candle] = []
    start = since
    while start + step <= until + 1:
        page = [candle for candle in fetch(start, limit) if candle[0] is not None and candle[0] >= start]
        if not page:
            start += limit * step
            continue
        out.extend(candle for candle in page if float(candle[0] or 0) + step <= until + 1)
        start = int(page[-1][0] or 0) + step
    return out


def bars_from_candles(candles: Sequence[Candle], symbol: str) -> pd.DataFrame:
    """ccxt candles [milliseconds, open, high, low, close, volume] -> the frame of ``SourceFrame``. DataError when
    there are none."""
    if not candles:
        raise DataError(f"the exchange returned no candles for {symbol}", "check the symbol and the dates")
    values = np.array(
        [[np.nan if cell is None else cell for cell in candle[:6]] for candle in candles], dtype=np.float64
    )
    stamps = np.array([int(candle[0] or 0) for candle in candles]).astype("datetime64[ms]").astype("datetime64[ns]")
    prices = {name: values[:, i] for i, name in enumerate(("open", "high", "low", "close", "volume"), start=1)}
    return pd.DataFrame({"time": stamps, "symbol": symbol, **prices})


def _moment(text: str, name: str) -> pd.Timestamp:
    try:
        return pd.Timestamp(text)
    except ValueError as error:
        raise DataError(f"data.{name}={text!r} is not a date", "use e.g. 2020-01-31") from error


def _until(end: str | None) -> pd.Timestamp:
    now = pd.Timestamp(datetime.datetime.now(tz=datetime.UTC)).tz_localize(None)
    if end is None:
        return now
    moment = _moment(end, "end")
    return min(moment + pd.Timedelta(days=1) if moment == moment.normalize() else moment, now)


def _milliseconds(moment: pd.Timestamp) -> int:
    aware = moment.tz_localize("UTC") if moment.tzinfo is None else moment
    return int(aware.timestamp() * 1000)
