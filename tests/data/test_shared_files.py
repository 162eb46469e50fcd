"""Every real file, as its publisher wrote it, loads with defaults, and its known traps are found."""

import numpy as np
import pytest

# path, source, assets, rows kept, calendar, seconds, bars a year
FILES = [
    ("bokeh_us_daily/stocks.csv.gz", "csv", 5, 12_154, "XNYS", 86_400, 252.0),
    ("coinbase_btcusd_1h/Coinbase_BTCUSD_1h.csv", "csv", 1, 20_111, "24/7", 3600, 8760.0),
    ("gymanytrading_eurusd_1h/FOREX_EURUSD_1H_ASK.csv", "csv", 1, 6225, "24/5", 3600, 365 * 5 / 7 * 24),
    ("nautilus_btcperp_1m/btc-perp-20211231-20220201_1m.csv", "csv", 1, 45_031, "24/7", 60, 525_600.0),
    ("trademaster_shfe_5m/data.csv", "csv", 20, 19 * 1023 + 933, "observed", 300, 27_000.0),
    ("lean_us_daily", "lean", 5, 27_579, "XNYS", 86_400, 252.0),
    ("lean_us_daily/aapl.zip", "lean", 1, 5849, "XNYS", 86_400, 252.0),
    ("lean_us_daily/bac.zip", "lean", 1, 5849, "XNYS", 86_400, 252.0),
    ("lean_us_daily/goog.zip", "lean", 1, 4183, "XNYS", 86_400, 252.0),
    ("lean_us_daily/ibm.zip", "lean", 1, 5849, "XNYS", 86_400, 252.0),
    ("lean_us_daily/spy.zip", "lean", 1, 5849, "XNYS", 86_400, 252.0),
    ("lean_oanda_eurusd_hour/eurusd.zip", "lean", 1, 74_439, "24/5", 3600, 365 * 5 / 7 * 24),
]


@pytest.mark.parametrize(("path", "source", "assets", "rows", "calendar", "seconds", "per_year"), FILES)
def test_every_file_loads_with_defaults(shared_load, path, source, assets, rows, calendar, seconds, per_year):
    bars, report = shared_load(path, source)
    assert (bars.num_assets, int(bars.tradable.sum()), report.rows_dropped) == (assets, rows, 0)
    assert (bars.calendar, bars.bar_seconds) == (calendar, seconds)
    assert bars.periods_per_year == pytest.approx(per_year, rel=0.01)


def test_no_data_file_is_left_out(shared_data):
    tables = [
        p for p in shared_data.rglob("*") if p.suffix in (".csv", ".gz", ".zip") and p.name[:4] not in ("fact", "map_")
    ]
    assert sorted(str(p.relative_to(shared_data)) for p in tables) == sorted(f[0] for f in FILES if "." in f[0])


def found(report, kind):
    return {f.symbol: f for f in report.of_kind(kind)}


def test_bokeh_traps(shared_load):
    bars, report = shared_load("bokeh_us_daily/stocks.csv.gz")
    assert {s: f.timestamps for s, f in found(report, "split").items()} == {
        "AAPL": ("2000-06-21T00:00:00", "2005-02-28T00:00:00"),
        "MSFT": ("2003-02-18T00:00:00",),
    }
    assert found(report, "short_history")["FB"].count == 196
    outlier = found(report, "outlier")
    assert outlier["AAPL"].timestamps == ("2000-09-29T00:00:00",)
    day = int(np.flatnonzero(bars.timestamps == np.datetime64("2000-09-29"))[0])
    assert bars.close[day, 0] / bars.close[day - 1, 0] - 1 == pytest.approx(25.75 / 53.5 - 1, abs=1e-5)
    # No other day moves by 40 %: the three splits are gone.
    moves = np.abs(np.diff(np.log(bars.close), axis=0))
    assert (np.nan_to_num(moves) > 0.4).sum() == 1
    assert not report.of_kind("gap")


def test_coinbase_traps(shared_load):
    bars, report = shared_load("coinbase_btcusd_1h/Coinbase_BTCUSD_1h.csv")
    assert bars.symbols == ("BTCUSD",)
    assert found(report, "zero_volume")["BTCUSD"].count == 28
    # Newest first is no fault; the publisher's rows of 2017-11-12 are interleaved with others, which is one.
    assert found(report, "unsorted")["BTCUSD"].count == 5
    assert found(report, "unsorted")["BTCUSD"].timestamps[0] == "2017-11-11T23:00:00"
    assert str(bars.timestamps[-1])[:16] == "2019-10-17T09:00"
    assert bars.close[-1, 0] == 8035.88
    # The column that is plainly called volume (dollars), not volume_btc.
    assert bars.volume[-1, 0] == 492_394.56
    assert not report.of_kind("volume_price_mismatch")


def test_lean_equity_traps(shared_load):
    bars, report = shared_load("lean_us_daily", "lean")
    bad = found(report, "range_outlier")["GOOG"]
    # The first bar (high 140.93, low 94.54) and a low of one cent in 2008.
    assert bad.timestamps == ("2004-08-19T00:00:00", "2007-12-18T00:00:00", "2008-09-30T00:00:00")
    assert (bars.open[bars.tradable[:, 2], 2][0], bad.policy) == (pytest.approx(135.91 * 0.997307), "keep")
    assert {s: f.count for s, f in found(report, "split").items()} == {"AAPL": 4, "BAC": 1, "IBM": 1}
    # The factor file lacks the share-class split of April 2014.
    assert found(report, "unadjusted_split")["GOOG"].timestamps == ("2014-04-03T00:00:00",)
    last = dict(zip(bars.symbols, bars.close[-1], strict=True))
    assert last == {"AAPL": 122.15, "BAC": 38.69, "GOOG": 2068.63, "IBM": 133.26, "SPY": 396.33}
    # Apple, 1998-01-02: 16.25 dollars raw, price factor 0.8613657, split factor 0.00892857.
    assert bars.close[0, 0] == pytest.approx(16.25 * 0.8613657 * 0.00892857, rel=1e-9)


def test_oanda_spreads(shared_load):
    bars, report = shared_load("lean_oanda_eurusd_hour/eurusd.zip", "lean")
    assert report.median_spread_bps == pytest.approx(1.02, abs=0.01)
    assert found(report, "missing_volume")["EURUSD"].policy == "zero"
    # First line: bid 1.31935, ask 1.32035.
    assert bars.close[0, 0] == pytest.approx(1.31985, rel=1e-12)
    assert not report.of_kind("off_session")


def test_shfe_times_are_local_when_told_so(load, shared_data):
    path = str(shared_data / "trademaster_shfe_5m/data.csv")
    bars, report = load(path=path, symbols=["WR2305", "AU2306"], timezone="Asia/Shanghai")
    assert bars.symbols == ("WR2305", "AU2306")
    assert {s.symbol: s.rows_kept for s in report.symbols} == {"WR2305": 933, "AU2306": 1023}
    assert str(bars.timestamps[-1])[:16] == "2023-03-28T07:00"
