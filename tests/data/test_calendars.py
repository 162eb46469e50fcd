import numpy as np
import pandas as pd
import pytest

from trade_agent.data.calendars import bars_per_year, check_calendar_name, expected_bars, infer_calendar, missing_bars
from trade_agent.errors import DataError


def stamps(start: str, stop: str, step: str) -> np.ndarray:
    return pd.date_range(start, stop, freq=step).to_numpy().astype("datetime64[ns]")


def missing(name: str, times: np.ndarray, seconds: int) -> np.ndarray:
    return missing_bars(expected_bars(name, times, seconds), times, seconds)


def test_us_daily_knows_holidays_long_ago():
    # 1998-01-19 is Martin Luther King day, 2001-09-11 to 14 the exchange was closed.
    days = expected_bars("XNYS", stamps("1998-01-02", "2001-12-31", "1D"), 86_400).astype("datetime64[D]").astype(str)
    assert not {"1998-01-19", "2001-09-11", "2001-09-14", "2001-09-15"} & set(days)
    assert {"1998-01-20", "2001-09-10", "2001-09-17"} <= set(days)


def test_us_hours_follow_summer_time_and_early_closes():
    # Summer time began on 2021-03-14: the exchange opens at 14:30 UTC before and at 13:30 after.
    grid = expected_bars("XNYS", stamps("2021-03-12T14:30", "2021-03-15T21:00", "30min"), 1800)
    assert grid[0] == np.datetime64("2021-03-12T14:30")
    assert np.datetime64("2021-03-15T13:30") in grid
    assert len(grid) == 26
    # Closed at 13:00 New York (18:00 UTC) on the day after Thanksgiving.
    grid = expected_bars("XNYS", stamps("2021-11-26T14:30", "2021-11-26T21:00", "30min"), 1800)
    assert len(grid) == 7


def test_fx_week_is_anchored_in_new_york():
    winter = expected_bars("24/5", stamps("2021-01-08T00:00", "2021-01-11T12:00", "1h"), 3600)
    assert np.datetime64("2021-01-08T21:00") in winter
    assert np.datetime64("2021-01-08T22:00") not in winter
    assert np.datetime64("2021-01-10T22:00") in winter
    summer = expected_bars("24/5", stamps("2021-07-09T00:00", "2021-07-12T12:00", "1h"), 3600)
    assert np.datetime64("2021-07-09T21:00") not in summer
    assert np.datetime64("2021-07-11T21:00") in summer


def test_missing_bars_are_the_ones_taken_out():
    full = expected_bars("XNYS", stamps("2021-01-04", "2021-02-26", "1D"), 86_400)
    gone = np.array([3, 17, 18])
    assert (missing("XNYS", np.delete(full, gone), 86_400) == full[gone]).all()
    hours = stamps("2021-01-01", "2021-01-31", "1h")
    assert (missing("24/7", np.delete(hours, [5, 400]), 3600) == hours[[5, 400]]).all()


def test_bars_stamped_with_their_end_are_not_missing():
    starts = expected_bars("XNYS", stamps("2021-03-01T14:30", "2021-03-05T21:00", "30min"), 1800)
    assert len(missing("XNYS", starts + np.timedelta64(30, "m"), 1800)) == 0


@pytest.mark.parametrize(
    ("times", "seconds", "names", "expected"),
    [
        (stamps("2020-01-01", "2020-03-01", "1h"), 3600, ["x"], "24/7"),
        (stamps("2020-01-01", "2020-12-31", "1D"), 86_400, ["x"], "24/7"),
        (stamps("2020-01-07", "2020-01-08", "1min"), 60, ["BTC-PERP"], "24/7"),
        (stamps("2020-01-01", "2020-12-31", "1B"), 86_400, ["EURUSD"], "24/5"),
        (stamps("2020-01-01", "2020-12-31", "1B"), 86_400, ["x"], "observed"),
    ],
)
def test_inferred(times, seconds, names, expected):
    assert infer_calendar(times, seconds, names) == expected


def test_inferred_from_sessions():
    days = expected_bars("XNYS", stamps("2015-01-02", "2016-12-30", "1D"), 86_400)
    assert infer_calendar(days, 86_400, ["x"]) == "XNYS"
    london = expected_bars("XLON", stamps("2015-01-02", "2016-12-30", "1D"), 86_400)
    assert infer_calendar(london, 86_400, ["x"]) == "observed"
    minutes = expected_bars("XNYS", stamps("2021-03-01T14:30", "2021-03-26T20:00", "1min"), 60)
    assert infer_calendar(minutes, 60, ["x"]) == "XNYS"
    fx = expected_bars("24/5", stamps("2021-01-04", "2021-02-26", "1h"), 3600)
    assert infer_calendar(fx, 3600, ["x"]) == "24/5"


@pytest.mark.parametrize(
    ("name", "seconds", "expected"),
    [
        ("XNYS", 86_400, 252.0),
        ("XNYS", 3600, 252 * 7),
        ("XNYS", 60, 252 * 390),
        ("24/7", 86_400, 365.0),
        ("24/7", 3600, 8760.0),
        ("24/7", 60, 525_600.0),
        ("24/5", 86_400, 365 * 5 / 7),
        ("24/7", 7 * 86_400, 365.2425 / 7),
    ],
)
def test_bars_per_year(name, seconds, expected):
    assert bars_per_year(name, seconds, stamps("2020-01-01", "2020-12-31", "1D")) == pytest.approx(expected, rel=1e-12)


def test_bars_per_year_of_other_exchanges_and_of_observed_sessions():
    assert 250 <= bars_per_year("XLON", 86_400, stamps("2020-12-01", "2020-12-31", "1D")) <= 255
    # Shanghai: 09:30-11:30 and 13:00-15:00.
    assert 240 * 240 <= bars_per_year("XSHG", 60, stamps("2020-12-01", "2020-12-31", "1D")) <= 246 * 240
    weekdays = stamps("2020-01-06", "2020-12-31", "1B")
    assert bars_per_year("observed", 86_400, weekdays) == pytest.approx(261, abs=1)


def test_names_are_checked():
    check_calendar_name("XTKS")
    with pytest.raises(DataError, match=r"data.calendar='NYSEE'.*XNYS"):
        check_calendar_name("NYSEE")
