import json

import numpy as np
import pytest

from trade_agent.data.checks import factor_jumps, nearest_split, stale_bars, suspected_splits, volume_mismatch
from trade_agent.data.validation import KINDS, resolve_policies
from trade_agent.errors import DataError

HOURS = 60


def table(num: int = HOURS) -> list[list[str]]:
    """Sound hourly bars: time, open, high, low, close, volume."""
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, num)))
    open_ = np.concatenate([[100.0], close[:-1]])
    times = np.datetime64("2021-01-01T00:00") + np.arange(num) * np.timedelta64(1, "h")
    high, low = np.maximum(open_, close) * 1.003, np.minimum(open_, close) * 0.997
    columns = (times.astype(str), open_, high, low, close, rng.integers(100, 200, num))
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


def write(rows: list[list[str]], extra: str = "") -> str:
    return "\n".join(["time,open,high,low,close,volume" + extra, *(",".join(row) for row in rows)]) + "\n"


def kinds(report) -> list[tuple[str, int, str]]:
    return [(f.kind, f.count, f.policy) for f in report.findings]


def test_sound_bars_have_no_findings(load_text):
    bars, report = load_text(write(table()))
    assert kinds(report) == []
    assert (bars.num_bars, report.rows_read, report.rows_dropped) == (HOURS, HOURS, 0)


def set_cell(row: int, column: int, value: str):
    def change(rows):
        rows[row][column] = value

    return change


def swap_high_low(rows):
    rows[7][2], rows[7][3] = rows[7][3], rows[7][2]


def repeat_runs(rows):
    for row in range(21, 27):
        rows[row][1:5] = rows[20][1:5]


INJECTIONS = {
    "unsorted": (lambda rows: rows.insert(3, rows.pop(10)), 1, 0),
    "duplicate_bar": (lambda rows: rows.insert(5, list(rows[5])), 1, 1),
    "nan": (set_cell(9, 4, ""), 1, 1),
    "non_positive_price": (set_cell(9, 3, "-1"), 1, 1),
    "high_below_low": (swap_high_low, 1, 1),
    "open_outside_range": (set_cell(9, 1, "150"), 1, 0),
    "nan_volume": (set_cell(9, 5, ""), 1, 0),
    "negative_volume": (set_cell(9, 5, "-5"), 1, 1),
    "zero_volume": (set_cell(9, 5, "0"), 1, 0),
    "stale": (repeat_runs, 6, 0),
    "gap": (lambda rows: rows.__delitem__(slice(30, 33)), 3, 0),
}


@pytest.mark.parametrize("kind", INJECTIONS)
def test_one_fault_gives_one_finding_with_the_default_policy(load_text, kind):
    inject, count, dropped = INJECTIONS[kind]
    rows = table()
    inject(rows)
    bars, report = load_text(write(rows))
    assert kinds(report) == [(kind, count, KINDS[kind].policies[0])]
    assert report.rows_dropped == dropped
    assert bars.num_bars == len(rows) - dropped
    assert (np.diff(bars.timestamps) > np.timedelta64(0)).all()


def test_time_of_the_finding(load_text):
    rows = table()
    rows[9][4] = ""
    _, report = load_text(write(rows))
    assert report.findings[0].timestamps == ("2021-01-01T09:00:00",)


def test_close_outside_is_clipped_or_kept_or_dropped(load_text):
    rows = table()
    rows[9][4] = str(float(rows[9][2]) * 1.001)
    bars, report = load_text(write(rows))
    assert kinds(report) == [("close_outside_range", 1, "clip")]
    assert bars.high[9, 0] == bars.close[9, 0] == float(rows[9][4])
    kept, _ = load_text(write(rows), policies={"close_outside_range": "keep"})
    assert kept.high[9, 0] == float(rows[9][2])
    assert load_text(write(rows), policies={"close_outside_range": "drop"})[0].num_bars == HOURS - 1


def test_conflicting_bars_of_one_time_are_refused_unless_settled(load_text, validate, tmp_path):
    rows = table()
    other = [rows[5][0], "1", "1", "1", "1", "1"]
    rows.insert(6, other)
    with pytest.raises(
        DataError, match=r"ACME: 1 x duplicate_timestamp.*data.policies.duplicate_timestamp=first\|last\|drop"
    ):
        load_text(write(rows))
    report = validate(path=str(tmp_path / "ACME.csv"))
    assert [f.kind for f in report.refused] == ["duplicate_timestamp"]
    assert report.to_dict()["ok"] is False
    closes = {p: load_text(write(rows), policies={"duplicate_timestamp": p})[0] for p in ("first", "last", "drop")}
    assert closes["first"].close[5, 0] == float(rows[5][4])
    assert closes["last"].close[5, 0] == 1.0
    assert closes["drop"].num_bars == HOURS - 1


def test_nothing_is_filled(load_text):
    rows = table()
    rows[9][1:6] = [""] * 5
    bars, _ = load_text(write(rows))
    assert np.datetime64("2021-01-01T09:00") not in bars.timestamps


def test_a_crash_is_flagged_and_kept(load_text):
    rows = table()
    for row in rows[30:]:
        row[1:5] = [str(float(cell) * 0.48) for cell in row[1:5]]
    bars, report = load_text(write(rows))
    assert [(f.kind, f.count, f.policy) for f in report.findings] == [("outlier", 1, "keep")]
    assert "-5" in report.findings[0].detail
    assert bars.close[30, 0] / bars.close[29, 0] < 0.5


def test_a_year_without_bars(load_text):
    rows = table()
    for row in rows[40:]:
        row[0] = row[0].replace("2021", "2023")
    _, report = load_text(write(rows), calendar="observed")
    assert kinds(report) == [("hole", 1, "keep")]


def test_many_dropped_rows_are_refused(load_text):
    rows = table()
    for row in rows[:20]:
        row[4] = ""
    with pytest.raises(DataError, match="20 of 60 rows were dropped"):
        load_text(write(rows))
    assert load_text(write(rows), policies={"many_dropped": "keep"})[0].num_bars == 40


def test_adjusted_close_beside_raw_highs_is_refused(load_text):
    rows = table()
    for row in rows[:30]:
        row[4] = str(float(row[4]) / 2)
    with pytest.raises(DataError, match="mixed_adjustment"):
        load_text(write(rows))


def test_adjusted_closes_that_mix_with_raw_ones_are_refused(load_text):
    rows = [[*row, str(float(row[4]) * (0.5 if i < 20 or i > 40 else 1.0))] for i, row in enumerate(table())]
    with pytest.raises(DataError, match="2 x mixed_adjustment"):
        load_text(write(rows, ",adj close"))


def split_rows(ratio: float) -> list[list[str]]:
    """A split before row 30: raw prices fall by the ratio, volume rises by it, the adjusted close goes on."""
    rows = table()
    out = []
    for i, row in enumerate(rows):
        scale = 1.0 if i < 30 else 1 / ratio
        prices = [str(float(cell) * scale) for cell in row[1:5]]
        out.append([row[0], *prices, str(float(row[5]) / scale), str(float(row[4]) / ratio)])
    return out


@pytest.mark.parametrize("ratio", [2.0, 1.5, 7.0, 0.1])
def test_split_from_the_adjusted_close(load_text, ratio):
    bars, report = load_text(write(split_rows(ratio), ",adj close"))
    assert [(f.kind, f.count) for f in report.findings] == [("split", 1)]
    clean, _ = load_text(write(table()))
    np.testing.assert_allclose(bars.close * ratio, clean.close, rtol=1e-12)
    np.testing.assert_allclose(bars.high * ratio, clean.high, rtol=1e-12)
    np.testing.assert_allclose(bars.volume / ratio, clean.volume, rtol=1e-12)
    _, raw = load_text(write(split_rows(ratio), ",adj close"), adjust=False)
    assert raw.of_kind("unadjusted_split")[0].timestamps == ("2021-01-02T06:00:00",)


def test_split_without_adjusted_close_is_suspected_from_volume_and_left(load_text):
    rows = [row[:6] for row in split_rows(2.0)]
    bars, report = load_text(write(rows))
    assert report.of_kind("unadjusted_split")[0].timestamps == ("2021-01-02T06:00:00",)
    assert bars.close[30, 0] < 0.6 * bars.close[29, 0]


def test_volume_units(load_text):
    rows = [[*row, str(float(row[4]) * float(row[5]))] for row in table()]
    assert kinds(load_text(write(rows, ",volume_usd"))[1]) == []
    rows[9][6] = str(float(rows[9][6]) * 10)
    assert kinds(load_text(write(rows, ",volume_usd"))[1]) == [("volume_price_mismatch", 1, "keep")]
    trades = [[*row, "17"] for row in table()]
    assert kinds(load_text(write(trades, ",vol_trades"))[1]) == []


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_refuse_is_a_policy_of_every_kind(kind):
    assert "refuse" in KINDS[kind].policies
    assert resolve_policies({kind: "refuse"})[kind] == "refuse"


def test_unknown_kinds_and_policies_list_the_valid_ones(load_text):
    with pytest.raises(DataError, match=r"data.policies.gaps is not a kind.*gap, hole"):
        load_text(write(table()), policies={"gaps": "keep"})
    with pytest.raises(DataError, match=r"data.policies.gap='fill' is not a policy; use one of keep, refuse"):
        load_text(write(table()), policies={"gap": "fill"})


def test_report_is_plain(load_text):
    rows = table()
    rows[9][4] = ""
    _, report = load_text(write(rows))
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert loaded["findings"][0]["kind"] == "nan"
    assert (loaded["rows_read"], loaded["rows_kept"], loaded["rows_dropped"]) == (60, 59, 1)
    assert report.table_rows() == [("ACME", "nan", "1", "drop", "2021-01-01T09:00:00", KINDS["nan"].meaning)]


def test_stale_runs():
    prices = np.repeat(np.array([1.0, 2, 3, 4, 4, 4, 4, 4, 4, 5, 5])[:, None], 4, axis=1)
    assert np.flatnonzero(stale_bars(prices)).tolist() == [4, 5, 6, 7, 8]
    assert not stale_bars(prices[:8]).any()


def test_nearest_split():
    ratios = nearest_split(np.array([2.01, 0.5, 1.34, 1.9, 1.0]), tolerance=0.03)
    np.testing.assert_allclose(ratios, [2.0, 0.5, 4 / 3, np.nan, np.nan])


def test_large_dividend_is_no_split():
    # Microsoft, November 2004: 3.08 dollars on 29.97, a factor of 1.112.
    close = np.array([29.9, 29.97, 27.39, 27.0])
    factor = np.array([1 / 1.11245, 1 / 1.11245, 1.0, 1.0])
    splits, broken = factor_jumps(factor, close)
    assert (splits == 1).all()
    assert not broken.any()


def test_crash_without_volume_of_a_split_is_not_suspected():
    close = np.concatenate([np.full(30, 100.0), np.full(30, 50.0)])
    steady = np.full(60, 1000.0)
    assert not suspected_splits(close, close, steady).any()
    doubled = np.where(np.arange(60) < 30, 1000.0, 2000.0)
    assert np.flatnonzero(suspected_splits(close, close, doubled)).tolist() == [30]


def test_volume_ratio_works_in_either_order():
    high, low = np.full(10, 102.0), np.full(10, 98.0)
    units = np.arange(1.0, 11.0)
    assert not volume_mismatch(units, units * 100, high, low).any()
    assert volume_mismatch(units * 100, np.where(units == 4, 1.0, units), high, low).sum() == 1
