from __future__ import annotations

import numpy as np
import pytest
import torch

from trade_agent.data.bars import Bars
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import DataError

NAN = float("nan")


def make_bars(opens: list[list[float]], closes: list[list[float]]) -> Bars:
    open_, close = np.array(opens), np.array(closes)
    return Bars(
        timestamps=np.datetime64("2024-01-01", "ns") + np.arange(len(open_)) * np.timedelta64(1, "D"),
        symbols=("AAA", "BBB"),
        open=open_,
        high=np.fmax(open_, close),
        low=np.fmin(open_, close),
        close=close,
        volume=np.where(np.isnan(close), NAN, 1.0),
        tradable=~np.isnan(close),
        calendar="24/7",
        bar_seconds=86400,
    )


def test_a_gap_carries_the_last_close_forward_and_nothing_backward() -> None:
    bars = make_bars(
        [[10.0, NAN], [11.0, NAN], [NAN, 70.0], [NAN, 72.0], [14.0, 73.0]],
        [[10.5, NAN], [11.5, NAN], [NAN, 71.0], [NAN, 74.0], [14.5, 75.0]],
    )
    series = MarketSeries.from_bars(bars, "cpu")
    # Asset 0 is suspended on rows 2 and 3; asset 1 is listed from row 2 on and has no price before.
    assert series.close[:, 0].tolist() == [10.5, 11.5, 11.5, 11.5, 14.5]
    assert series.open[:, 0].tolist() == [10.0, 11.0, 11.5, 11.5, 14.0]
    assert series.close[:, 1].tolist() == [1.0, 1.0, 71.0, 74.0, 75.0]
    assert series.open[:, 1].tolist() == [1.0, 1.0, 70.0, 72.0, 73.0]
    assert series.tradable[:, 0].tolist() == [True, True, False, False, True]
    assert series.tradable[:, 1].tolist() == [False, False, True, True, True]
    assert series.close.dtype == torch.float64
    assert not series.always_tradable


def test_a_later_price_does_not_change_earlier_rows() -> None:
    opens = [[10.0, 20.0], [NAN, NAN], [12.0, 22.0]]
    first = MarketSeries.from_bars(make_bars(opens, opens), "cpu")
    opens[2] = [99.0, 1.0]
    second = MarketSeries.from_bars(make_bars(opens, opens), "cpu")
    assert torch.equal(first.close[:2], second.close[:2])
    assert torch.equal(first.open[:2], second.open[:2])


def test_always_tradable_is_found() -> None:
    rows = [[10.0, 20.0], [11.0, 21.0]]
    assert MarketSeries.from_bars(make_bars(rows, rows), "cpu").always_tradable


@pytest.mark.parametrize(
    ("open_", "close", "tradable", "message"),
    [
        (torch.ones(3, 1), torch.ones(3, 1).double(), torch.ones(3, 1).bool(), "open prices are torch.float32"),
        (torch.ones(3, 1).double(), torch.ones(2, 1).double(), torch.ones(3, 1).bool(), r"shape \(2, 1\)"),
        (torch.ones(3, 1).double(), torch.zeros(3, 1).double(), torch.ones(3, 1).bool(), "not positive and finite"),
        (torch.full((3, 1), NAN).double(), torch.ones(3, 1).double(), torch.ones(3, 1).bool(), "not positive"),
        (torch.ones(3, 1).double(), torch.ones(3, 1).double(), torch.ones(3, 1), "tradable is torch.float32"),
    ],
)
def test_bad_prices_are_refused(open_: torch.Tensor, close: torch.Tensor, tradable: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MarketSeries(open_, close, tradable)
