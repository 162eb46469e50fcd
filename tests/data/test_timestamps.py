import numpy as np
import pandas as pd
import pytest

from trade_agent.data.timestamps import parse_times
from trade_agent.errors import DataError


def parse(*values, time_format=None, timezone="UTC", groups=None) -> list[str]:
    out = parse_times(
        pd.Series(list(values)),
        time_format=time_format,
        timezone=timezone,
        groups=None if groups is None else pd.Series(groups),
    )
    assert out.dtype == np.dtype("datetime64[ns]")
    return [str(stamp) for stamp in out.astype("datetime64[ms]")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-10-17 09-AM", "2019-10-17T09:00:00.000"),
        ("2019-10-17 12-AM", "2019-10-17T00:00:00.000"),
        ("2019-10-17 12-PM", "2019-10-17T12:00:00.000"),
        ("2019-10-17 01:05:07 PM", "2019-10-17T13:05:07.000"),
        ("17.10.2019 22:00:00.250", "2019-10-17T22:00:00.250"),
        ("01.02.2017 22:00:00.000", "2017-02-01T22:00:00.000"),
        ("20170131 21:00", "2017-01-31T21:00:00.000"),
        ("20170131 210507", "2017-01-31T21:05:07.000"),
        ("2017.01.31 21:00", "2017-01-31T21:00:00.000"),
        ("2017/1/5 9:30", "2017-01-05T09:30:00.000"),
        ("31/01/2017 09:30", "2017-01-31T09:30:00.000"),
        ("01/31/2017 09:30", "2017-01-31T09:30:00.000"),
        ("Jan 31, 2017 10:00", "2017-01-31T10:00:00.000"),
        ("31-Jan-2017 10:00", "2017-01-31T10:00:00.000"),
        ("2017-01-31T21:00:00.123456", "2017-01-31T21:00:00.123"),
        ("2017-01-31T21:00:00Z", "2017-01-31T21:00:00.000"),
        ("2017-01-31T21:00:00+02:00", "2017-01-31T19:00:00.000"),
        ("31.01.2017 21:00 +0200", "2017-01-31T19:00:00.000"),
        ("2017-01-31", "2017-01-31T00:00:00.000"),
    ],
)
def test_spellings(text, expected):
    assert parse(text) == [expected]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1_500_000_000, "2017-07-14T02:40:00.000"),
        (1_500_000_000_250, "2017-07-14T02:40:00.250"),
        (1_500_000_000_250_000, "2017-07-14T02:40:00.250"),
        (1_500_000_000_250_000_000, "2017-07-14T02:40:00.250"),
        (1_500_000_000.25, "2017-07-14T02:40:00.250"),
        ("1500000000", "2017-07-14T02:40:00.000"),
        (20170131, "2017-01-31T00:00:00.000"),
        ("201701312105", "2017-01-31T21:05:00.000"),
        ("20170131210507", "2017-01-31T21:05:07.000"),
    ],
)
def test_numbers(number, expected):
    assert parse(number) == [expected]


def test_nanoseconds_are_exact():
    out = parse_times(pd.Series([1_500_000_000_123_456_789]), time_format=None, timezone="UTC")
    assert out.astype(np.int64)[0] == 1_500_000_000_123_456_789


def test_one_row_settles_the_order_of_day_and_month_for_all():
    assert parse("01/02/2017", "13/02/2017") == ["2017-02-01T00:00:00.000", "2017-02-13T00:00:00.000"]
    assert parse("01/02/2017", "01/13/2017") == ["2017-01-02T00:00:00.000", "2017-01-13T00:00:00.000"]


def test_undecidable_order_names_the_option():
    with pytest.raises(DataError, match=r"cannot be told apart.*01/02/2017.*data.time_format='%d/%m/%Y"):
        parse("01/02/2017", "02/02/2017", "03/02/2017")
    assert parse("01/02/2017", time_format="%d/%m/%Y") == ["2017-02-01T00:00:00.000"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("13/02/2017", "02/13/2017"), "day first in '13/02/2017' and month first in '02/13/2017'"),
        (("yesterday",), "'yesterday' is not a time"),
        (("2017-01-31", "total"), "'total' is not written like"),
        (("2017-02-30 10:00",), "not a possible time"),
        (("31.02.2017 10:00",), "not a possible time"),
        (("2017-01-01T00:00:00Z", "2017-01-02T00:00:00"), "some times have an offset"),
        ((12345,), "no dates and no epoch"),
        ((1_500_000_000, 1_500_000_000_000), "no epoch of one unit"),
        (("2017-01-01", None), "row 2 of the data has no time"),
    ],
)
def test_refused(values, message):
    with pytest.raises(DataError, match=message):
        parse(*values)


def test_explicit_format_and_units():
    assert parse("17-10-05", time_format="%y-%d-%m") == ["2017-05-10T00:00:00.000"]
    assert parse(86_400, time_format="s") == ["1970-01-02T00:00:00.000"]
    with pytest.raises(DataError, match="does not fit the file"):
        parse("2017-01-31", time_format="%d/%m/%Y")


def test_local_times():
    # New York is five hours behind in winter and four in summer.
    assert parse("2021-01-04 09:30", "2021-07-01 09:30", timezone="America/New_York") == [
        "2021-01-04T14:30:00.000",
        "2021-07-01T13:30:00.000",
    ]
    # Dates name sessions and stay.
    assert parse("2021-01-04", "2021-07-01", timezone="America/New_York")[0] == "2021-01-04T00:00:00.000"
    # A midnight written with the exchange's own offset is such a date, too.
    assert parse("2021-01-04 00:00:00-05:00", "2021-07-01 00:00:00-04:00")[1] == "2021-07-01T00:00:00.000"


def test_repeated_hour_is_told_apart_by_order_per_symbol_and_newest_first():
    # 2021-11-07: 01:30 in New York came twice, at 05:30 and 06:30 UTC.
    local = ["2021-11-07 00:30", "2021-11-07 01:30", "2021-11-07 01:30", "2021-11-07 02:30"]
    expected = [f"2021-11-07T{hour}:30:00.000" for hour in ("04", "05", "06", "07")]
    assert parse(*local, timezone="America/New_York") == expected
    assert parse(*local[::-1], timezone="America/New_York") == expected[::-1]
    both = parse(*local, *local, timezone="America/New_York", groups=["a"] * 4 + ["b"] * 4)
    assert both == expected * 2


def test_impossible_local_time_and_unknown_zone():
    with pytest.raises(DataError, match=r"data.timezone=America/New_York"):
        parse("2021-03-14 02:30", timezone="America/New_York")
    with pytest.raises(DataError, match="not a time zone"):
        parse("2021-03-14 02:30", timezone="Mars/Olympus")


def test_datetime_columns():
    naive = pd.Series(pd.to_datetime(["2021-01-04 09:30"]).as_unit("us"))
    assert parse_times(naive, time_format=None, timezone="America/New_York")[0] == np.datetime64("2021-01-04T14:30")
    aware = pd.Series(pd.to_datetime(["2021-01-04 09:30-05:00"]).as_unit("ms"))
    assert parse_times(aware, time_format=None, timezone="UTC")[0] == np.datetime64("2021-01-04T14:30")
