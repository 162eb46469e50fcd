import dataclasses

import numpy as np
import pytest

from trade_agent.data.bars import Bars
from trade_agent.errors import DataError


def make(**changes) -> Bars:
    prices = np.array([[1.0, 10.0], [2.0, np.nan], [3.0, 30.0]])
    fields = {
        "timestamps": np.array(["2020-01-01", "2020-01-02", "2020-01-03"], dtype="datetime64[ns]"),
        "symbols": ("A", "B"),
        "open": prices.copy(),
        "high": prices.copy(),
        "low": prices.copy(),
        "close": prices.copy(),
        "volume": prices.copy(),
        "tradable": np.isfinite(prices),
        "calendar": "24/7",
        "bar_seconds": 86_400,
    }
    return Bars(**{**fields, **changes})


def test_sizes_and_year():
    bars = make()
    assert (bars.num_bars, bars.num_assets, bars.periods_per_year) == (3, 2, 365.0)


def test_fingerprint_depends_on_every_field_and_on_content_only():
    bars = make()
    assert len(bars.fingerprint) == 64
    assert make().fingerprint == bars.fingerprint
    other_nan = bars.close.copy()
    other_nan[1, 1] = -np.nan
    assert make(close=other_nan).fingerprint == bars.fingerprint
    changed = {
        "timestamps": bars.timestamps + np.timedelta64(1, "ns"),
        "symbols": ("A", "C"),
        "calendar": "observed",
        "bar_seconds": 3600,
        **{name: np.nextafter(getattr(bars, name), 99) for name in ("open", "high", "low", "close", "volume")},
    }
    seen = {make(**{name: value}).fingerprint for name, value in changed.items()}
    assert len(seen | {bars.fingerprint}) == len(changed) + 1


def test_rows_cuts_every_array():
    part = make().rows(1, 3)
    assert part.num_bars == 2
    assert part.close[0, 0] == 2.0
    assert part.timestamps[0] == np.datetime64("2020-01-02")
    assert part.bar_seconds == 86_400


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (0, 4)])
def test_rows_outside_are_refused(start, stop):
    with pytest.raises(DataError, match="outside the 3 bars"):
        make().rows(start, stop)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"close": np.ones((2, 2))}, "close is float64 of shape"),
        ({"close": np.ones((3, 2), dtype=np.float32)}, "close is float32"),
        ({"timestamps": np.array(["2020-01-02", "2020-01-01", "2020-01-03"], dtype="datetime64[ns]")}, "increasing"),
        ({"timestamps": np.array(["2020-01-01", "2020-01-01", "2020-01-03"], dtype="datetime64[ns]")}, "increasing"),
        ({"timestamps": np.arange(3).astype("datetime64[us]")}, "datetime64\\[ns\\]"),
        ({"symbols": ("A", "A")}, "not unique"),
        ({"tradable": np.ones((3, 2), dtype=bool)}, "not finite on a tradable bar"),
        ({"tradable": np.zeros((3, 2), dtype=bool)}, "where nothing traded"),
        ({"low": np.array([[0.0, 10.0], [2.0, np.nan], [3.0, 30.0]])}, "not positive"),
        ({"bar_seconds": 0}, "bar_seconds"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().calendar = "XNYS"


def signal(values=(1.0, -2.0, 3.0)):
    column = np.array([[value, value] for value in values])
    column[1, 1] = np.nan
    return column


def test_signals_are_part_of_the_content_and_of_every_cut():
    bars = make(signals={"mood": signal()})
    others = [make(), make(signals={"mood": signal((1.0, -2.0, 4.0))}), make(signals={"tone": signal()})]
    assert len({bars.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert bars.rows(1, 3).signals["mood"][0, 0] == -2.0


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"mood": signal((1.0, np.nan, 3.0))}, "mood is not finite"),
        ({"mood": np.ones((3, 2))}, "mood has a value where nothing traded"),
        ({"mood": signal()[:2]}, "mood is float64 of shape"),
        ({"close": signal()}, "a signal is called close"),
    ],
)
def test_signals_that_do_not_fit_are_refused(signals, message):
    with pytest.raises(DataError, match=message):
        make(signals=signals)
