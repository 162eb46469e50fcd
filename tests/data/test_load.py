import gzip
from importlib import resources

import numpy as np
import pytest

from trade_agent.data import sources
from trade_agent.errors import DataError

LONG = """date,symbol,open,high,low,close,volume
2021-01-01,B,1,2,1,2,10
2021-01-02,B,2,3,2,3,10
2021-01-04,B,3,4,3,4,10
2021-01-01,A,10,20,10,20,5
2021-01-03,A,20,30,20,30,5
2021-01-04,A,30,40,30,40,5
"""


def test_union_of_times_with_a_mask_and_no_filling(load_text):
    bars, report = load_text(LONG)
    assert bars.symbols == ("A", "B")
    assert bars.timestamps.astype("datetime64[D]").astype(str).tolist() == [f"2021-01-0{i}" for i in (1, 2, 3, 4)]
    assert bars.tradable.tolist() == [[True, True], [False, True], [True, False], [True, True]]
    np.testing.assert_array_equal(bars.close, [[20, 2], [np.nan, 3], [30, np.nan], [40, 4]])
    assert [(s.symbol, s.rows_read, s.rows_kept) for s in report.symbols] == [("A", 3, 3), ("B", 3, 3)]


def test_symbols_come_in_the_order_asked_for(load_text):
    bars, _ = load_text(LONG, symbols=["B", "A"])
    assert bars.symbols == ("B", "A")
    assert bars.close[0].tolist() == [2.0, 20.0]


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ("2021-01-02", None, [2, 3, 4]),
        (None, "2021-01-03", [1, 2, 3]),
        ("2021-01-02", "2021-01-03", [2, 3]),
        ("2021-01-02T00:00:01", "2021-01-04T00:00:00", [3, 4]),
    ],
)
def test_start_and_end_are_inclusive(load_text, start, end, days):
    bars, _ = load_text(LONG.replace("2021-01-04,B", "2021-01-03,B"), start=start, end=end)
    assert [int(str(t)[8:10]) for t in bars.timestamps] == days


def test_end_date_includes_its_whole_day(load_text):
    content = "time,close\n" + "".join(f"2021-01-0{d} {h:02}:00,{1 + h}\n" for d in (1, 2) for h in range(24))
    assert load_text(content, end="2021-01-01")[0].num_bars == 24


def test_empty_range_and_bad_dates(load_text):
    with pytest.raises(DataError, match=r"no bars from 2022-01-01 to None; it covers 2021-01-01"):
        load_text(LONG, start="2022-01-01")
    with pytest.raises(DataError, match=r"data.start='soon' is not a date"):
        load_text(LONG, start="soon")


def test_same_content_same_fingerprint_in_any_row_order(load_text):
    lines = LONG.splitlines()
    turned = "\n".join([lines[0], *reversed(lines[1:])]) + "\n"
    assert load_text(LONG)[0].fingerprint == load_text(turned)[0].fingerprint


def test_unknown_source_and_calendar(load):
    with pytest.raises(DataError, match=r"data.source='excel'.*sample, csv, parquet, feather, lean, yahoo, crypto"):
        load(source="excel")
    with pytest.raises(DataError, match=r"data.calendar='WALL'"):
        load(source="sample", calendar="WALL")


def test_calendar_of_the_user_wins(load_text):
    assert load_text(LONG, calendar="XLON")[0].calendar == "XLON"


def test_timezone(load_text):
    content = "time,close\n2021-01-04 09:30,1\n2021-01-04 09:31,2\n"
    bars, _ = load_text(content, timezone="America/New_York")
    assert bars.timestamps[0] == np.datetime64("2021-01-04T14:30")


def test_sample(load):
    bars, report = load(source="sample")
    assert bars.symbols == ("AAPL", "FB", "GOOG", "IBM", "MSFT")
    assert bars.calendar == "XNYS"
    assert bars.tradable.sum(axis=0).tolist() == [3270, 196, 2148, 3270, 3270]
    assert [(f.symbol, f.count) for f in report.of_kind("split")] == [("AAPL", 2), ("MSFT", 1)]
    assert load(source="sample", symbols=["IBM"])[0].tradable.all()


def test_sample_prices_are_adjusted_and_volume_by_splits_only(load):
    bars, _ = load(source="sample", symbols=["AAPL"])
    raw, _ = load(source="sample", symbols=["AAPL"], adjust=False)
    day = int(np.flatnonzero(bars.timestamps == np.datetime64("2000-06-20"))[0])
    # From the file: close 101.25, adjusted close 3.253009; both later splits are 2 for 1.
    assert bars.close[day, 0] == pytest.approx(3.253009, abs=1e-6)
    assert raw.close[day, 0] == 101.25
    assert bars.high[day, 0] / bars.close[day, 0] == pytest.approx(103.94 / 101.25, rel=1e-12)
    assert bars.volume[day, 0] == 4 * 4_476_700
    assert bars.volume[day + 1, 0] == 2 * 4_375_000
    assert bars.volume[-1, 0] == raw.volume[-1, 0]


def test_damaged_sample_is_refused(load, monkeypatch, tmp_path):
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "us_daily.csv.gz").write_bytes(gzip.compress(b"Ticker,Date\n"))
    monkeypatch.setattr(sources.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"damaged"):
        load(source="sample")


def test_sample_has_its_provenance():
    text = resources.files("trade_agent.data").joinpath("sample/PROVENANCE.md").read_text()
    assert sources.SAMPLE_SHA256 in text
    assert "public domain" in text
