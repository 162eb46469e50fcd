import importlib.util

import numpy as np
import pandas as pd
import pytest

from trade_agent.data.downloads import bars_from_candles, bars_from_yahoo, fetch_candles
from trade_agent.errors import DataError

HOUR = 3_600_000
START = 1_577_836_800_000  # 2020-01-01


def yahoo_table(index: pd.DatetimeIndex) -> pd.DataFrame:
    """As yfinance 1.7 returns it for two tickers with auto_adjust=False; the second did not trade on the first day."""
    fields = ["Adj Close", "Close", "High", "Low", "Open", "Volume"]
    columns = pd.MultiIndex.from_product([fields, ["AAPL", "MSFT"]], names=["Price", "Ticker"])
    first = [73.06, np.nan, 75.09, np.nan, 75.15, np.nan, 73.80, np.nan, 74.06, np.nan, 135480400, np.nan]
    second = [72.35, 152.8, 74.36, 158.62, 75.14, 159.95, 74.13, 158.06, 74.29, 158.32, 146322800, 21116200]
    return pd.DataFrame([first, second], index=index, columns=columns)


def test_yahoo_daily():
    frame = bars_from_yahoo(yahoo_table(pd.DatetimeIndex(["2020-01-02", "2020-01-03"], name="Date")), ["AAPL", "MSFT"])
    assert frame["symbol"].tolist() == ["AAPL", "AAPL", "MSFT"]
    assert [str(time.date()) for time in frame["time"]] == ["2020-01-02", "2020-01-03", "2020-01-03"]
    assert frame.loc[0, ["open", "high", "low", "close", "adj_close"]].tolist() == [74.06, 75.15, 73.80, 75.09, 73.06]
    assert frame.loc[2, "volume"] == 21_116_200


def test_yahoo_zones():
    daily = pd.DatetimeIndex(["2020-01-02", "2020-01-03"]).tz_localize("America/New_York")
    assert bars_from_yahoo(yahoo_table(daily), ["AAPL"])["time"].iloc[0] == pd.Timestamp("2020-01-02")
    hourly = pd.DatetimeIndex(["2020-01-02 09:30", "2020-01-02 10:30"]).tz_localize("America/New_York")
    assert bars_from_yahoo(yahoo_table(hourly), ["AAPL"])["time"].iloc[0] == pd.Timestamp("2020-01-02 14:30")


def test_yahoo_empty_frame_is_an_error():
    table = yahoo_table(pd.DatetimeIndex(["2020-01-02", "2020-01-03"]))
    with pytest.raises(DataError, match=r"Yahoo returned nothing for AAPL.*network"):
        bars_from_yahoo(table.iloc[:0], ["AAPL"])
    with pytest.raises(DataError, match=r"nothing"):
        bars_from_yahoo(None, ["AAPL"])
    with pytest.raises(DataError, match=r"no bars for MSFT"):
        bars_from_yahoo(table.iloc[:1], ["AAPL", "MSFT"])
    with pytest.raises(DataError, match=r"no column for IBM"):
        bars_from_yahoo(table, ["IBM"])


class Exchange:
    """Hourly candles as an exchange serves them: at most ``page`` from the moment asked for."""

    def __init__(self, hours: list[int], page: int) -> None:
        self.candles = [[START + h * HOUR, 1.0 + h, 2.0 + h, 0.5 + h, 1.5 + h, 10.0] for h in hours]
        self.page = page
        self.asked: list[int] = []

    def fetch(self, since: int, limit: int) -> list[list[float]]:
        self.asked.append(since)
        assert len(self.asked) < 50
        return [c for c in self.candles if c[0] >= since][: min(limit, self.page)] if self.page else []


def fetched_hours(exchange: Exchange, first: int, last: int, limit: int = 5) -> list[int]:
    found = fetch_candles(exchange.fetch, since=START + first * HOUR, until=START + last * HOUR, step=HOUR, limit=limit)
    return [(int(c[0]) - START) // HOUR for c in found]


def test_pages_join_without_gap_or_repeat():
    exchange = Exchange(list(range(40)), page=5)
    assert fetched_hours(exchange, 3, 20) == list(range(3, 20))
    # A smaller page than the one asked for does not end the download.
    assert fetched_hours(Exchange(list(range(40)), page=3), 0, 20) == list(range(20))


def test_candle_still_open_is_left_out():
    exchange = Exchange(list(range(40)), page=5)
    found = fetch_candles(exchange.fetch, since=START, until=START + 2 * HOUR + HOUR // 2, step=HOUR, limit=5)
    assert len(found) == 2


def test_stretch_without_trades_and_late_listing():
    class Windowed(Exchange):
        def fetch(self, since, limit):
            self.asked.append(since)
            return [c for c in self.candles if since <= c[0] < since + limit * HOUR]

    assert fetched_hours(Windowed([12, 13, 30], page=5), 0, 35) == [12, 13, 30]


def test_exchange_that_ignores_since_ends():
    class Latest(Exchange):
        def fetch(self, since, limit):
            self.asked.append(since)
            assert len(self.asked) < 50
            return self.candles[-5:]

    assert fetched_hours(Latest(list(range(20)), page=5), 0, 20) == [15, 16, 17, 18, 19]
    assert fetched_hours(Latest(list(range(20)), page=5), 30, 45) == []


def test_candles_to_bars():
    frame = bars_from_candles([[START, 1, 3, 0.5, 2, None], [START + HOUR, 2, 3, 1, 2.5, 7]], "BTC/USDT")
    assert frame["time"].iloc[1] == pd.Timestamp("2020-01-01 01:00")
    assert frame.loc[1, ["open", "high", "low", "close", "volume"]].tolist() == [2.0, 3.0, 1.0, 2.5, 7.0]
    assert np.isnan(frame.loc[0, "volume"])
    with pytest.raises(DataError, match=r"no candles for BTC/USDT"):
        bars_from_candles([], "BTC/USDT")


@pytest.mark.parametrize(("source", "package", "extra"), [("yahoo", "yfinance", "yahoo"), ("crypto", "ccxt", "crypto")])
def test_missing_extra_names_the_command(load, source, package, extra):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(DataError, match=rf"{package}; pip install 'trade-agent\[{extra}\]'"):
        load(source=source, symbols=["X"], start="2020-01-01")


def test_yahoo_needs_symbols(load):
    pytest.importorskip("yfinance", reason="the yahoo extra is not installed")
    with pytest.raises(DataError, match=r"data.symbols and data.start"):
        load(source="yahoo")


def test_crypto_options(load):
    pytest.importorskip("ccxt", reason="the crypto extra is not installed")
    with pytest.raises(DataError, match=r"data.exchange='nope'"):
        load(source="crypto", symbols=["BTC/USDT"], start="2020-01-01", exchange="nope")
    with pytest.raises(DataError, match=r"data.interval='7h'"):
        load(source="crypto", symbols=["BTC/USDT"], start="2020-01-01", exchange="kraken", interval="7h")
