"""Folds of a forecaster on the bars of another run."""

import numpy as np
import torch

from trade_agent.training.models import folds_from_state, folds_to_state
from trade_agent.training.supervised import Fold

DAYS = np.arange("2020-01-01", "2020-03-01", dtype="datetime64[D]").astype("datetime64[ns]")


def state_of(*bounds: tuple[int, int]) -> dict:
    folds = [Fold(start, stop, {}, torch.eye(1), torch.zeros(1)) for start, stop in bounds]
    return {"symbols": ["A"], "folds": folds_to_state(folds, DAYS)}


def rows_of(state: dict, timestamps: np.ndarray, symbols: tuple[str, ...] = ("A",), first_row: int = 0) -> list:
    return [(fold.start, fold.stop) for fold in folds_from_state(state, symbols, timestamps, first_row)]


def test_folds_keep_their_rows_on_the_same_bars() -> None:
    assert rows_of(state_of((10, 20), (20, 35)), DAYS) == [(10, 20), (20, 35)]


def test_folds_keep_their_dates_on_bars_that_start_later() -> None:
    assert rows_of(state_of((10, 20), (20, 35)), DAYS[15:]) == [(0, 5), (5, 20)]
    assert rows_of(state_of((10, 20), (20, 35)), DAYS[15:], first_row=8) == [(8, 20)]


def test_no_folds_for_other_symbols_or_other_years() -> None:
    assert rows_of(state_of((10, 20)), DAYS, symbols=("B",)) == []
    assert rows_of(state_of((10, 20)), DAYS + np.timedelta64(900, "D")) == []
