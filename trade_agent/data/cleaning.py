"""Applies the checks and policies to the bars of one asset, in an order in which no check trips over what an earlier
one found."""

import numpy as np
import pandas as pd

from trade_agent.data import checks
from trade_agent.data.calendars import expected_bars, missing_bars, off_session_bars
from trade_agent.data.validation import KINDS, Finding, iso

PRICES = ["open", "high", "low", "close"]
MANY_DROPPED = 0.2
HOLE_DAYS = 365


class Cleaner:
    """The bars of one asset on their way through the checks. ``frame`` is what is left, ``findings`` what was seen."""

    def __init__(self, frame: pd.DataFrame, *, symbol: str, policies: dict[str, str]) -> None:
        self.frame = frame.reset_index(drop=True)
        self.symbol = symbol
        self.policies = policies
        self.findings: list[Finding] = []
        self.rows_read = len(frame)

    def note(self, kind: str, count: int, stamps: np.ndarray, detail: str = "") -> str:
        """Record a finding; returns the policy that applies to it."""
        policy = self.policies[kind]
        self.findings.append(Finding(kind, self.symbol, count, iso(stamps), policy, detail or KINDS[kind].meaning))
        return policy

    def rows(self, kind: str, mask: np.ndarray, detail: str = "") -> None:
        """Record the rows of ``mask`` and apply the policy of ``kind`` to them."""
        if not mask.any():
            return
        policy = self.note(kind, int(mask.sum()), self.stamps[mask], detail)
        if policy == "drop" or (policy == "refuse" and "drop" in KINDS[kind].policies):
            # After a refusal the other checks still run, for the report, on the rows that are sound.
            self.frame = self.frame[~mask].reset_index(drop=True)
        elif policy == "clip":
            span = self.frame.loc[mask, PRICES]
            self.frame.loc[mask, "high"] = span.max(axis=1)
            self.frame.loc[mask, "low"] = span.min(axis=1)
        elif policy == "zero":
            self.frame.loc[mask, "volume"] = 0.0

    @property
    def stamps(self) -> np.ndarray:
        return self.frame["time"].to_numpy().astype("datetime64[ns]")

    def values(self, name: str) -> np.ndarray:
        return self.frame[name].to_numpy(dtype=np.float64)


def clean(
    frame: pd.DataFrame, *, symbol: str, policies: dict[str, str], adjust: bool, calendar: str, bar_seconds: int
) -> Cleaner:
    """All checks on one asset's rows (in file order); see the module for the order."""
    state = Cleaner(frame, symbol=symbol, policies=policies)
    _order(state)
    _calendar(state, calendar, bar_seconds)
    _prices(state)
    _volumes(state)
    if len(state.frame):
        _adjust(state, adjust)
        _series(state, adjust)
    dropped = state.rows_read - len(state.frame)
    if dropped > MANY_DROPPED * state.rows_read:
        state.note(
            "many_dropped",
            dropped,
            state.stamps[:0],
            f"{dropped} of {state.rows_read} rows were dropped: check the columns and data.time_format",
        )
    return state


def _order(state: Cleaner) -> None:
    steps = np.diff(state.stamps).astype(np.int64)
    if (steps < 0).sum() > (steps > 0).sum():
        state.frame = state.frame.iloc[::-1].reset_index(drop=True)
        steps = -steps[::-1]
    if (steps < 0).any():
        state.note("unsorted", int((steps < 0).sum()), state.stamps[1:][steps < 0])
        state.frame = state.frame.sort_values("time", kind="stable", ignore_index=True)
    state.rows("duplicate_bar", state.frame.duplicated(keep="first").to_numpy())
    repeated = state.frame.duplicated("time", keep=False).to_numpy()
    if not repeated.any():
        return
    extra = state.frame.duplicated("time", keep="first").to_numpy()
    policy = state.note("duplicate_timestamp", int(extra.sum()), state.stamps[extra])
    remove = {"first": extra, "last": state.frame.duplicated("time", keep="last").to_numpy(), "drop": repeated}.get(
        policy, extra
    )
    state.frame = state.frame[~remove].reset_index(drop=True)


def _calendar(state: Cleaner, calendar: str, bar_seconds: int) -> None:
    stamps = state.stamps
    if len(stamps) < 2:
        return
    expected = expected_bars(calendar, stamps, bar_seconds)
    missing = missing_bars(expected, stamps, bar_seconds)
    if len(missing):
        state.note("gap", len(missing), missing, f"{len(missing)} bars that {calendar} expects are absent")
    hole = np.diff(stamps) >= np.timedelta64(HOLE_DAYS, "D")
    if hole.any():
        longest = int(np.diff(stamps).max() / np.timedelta64(1, "D"))
        state.note("hole", int(hole.sum()), stamps[:-1][hole], f"no bars for up to {longest} days after the time shown")
    # A crypto market never closes: what lies off its grid is an irregular step, which is no fault.
    if calendar not in ("observed", "24/7"):
        state.rows("off_session", off_session_bars(expected, stamps, bar_seconds))


def _prices(state: Cleaner) -> None:
    state.rows("nan", ~np.isfinite(state.frame[PRICES].to_numpy(dtype=np.float64)).all(axis=1))
    lowest = state.frame[PRICES].to_numpy(dtype=np.float64).min(axis=1)
    state.rows("non_positive_price", lowest <= 0)
    if {"spread_open", "spread_close"} <= set(state.frame.columns):
        state.rows("negative_spread", (state.values("spread_open") < 0) | (state.values("spread_close") < 0))
    state.rows("high_below_low", state.values("high") < state.values("low"))
    high, low, close = state.values("high"), state.values("low"), state.values("close")
    far = (close > high * 1.01) | (close < low * 0.99)
    if len(far) >= 5 and far.mean() > MANY_DROPPED:
        state.note(
            "mixed_adjustment",
            int(far.sum()),
            state.stamps[far],
            "the close lies far outside high and low: one is adjusted, the other not",
        )
    state.rows("close_outside_range", checks.outside_range(close, high, low))
    state.rows(
        "open_outside_range", checks.outside_range(state.values("open"), state.values("high"), state.values("low"))
    )


def _volumes(state: Cleaner) -> None:
    volume = state.values("volume")
    if not (np.isfinite(volume) & (volume != 0)).any():
        state.note("missing_volume", len(volume), state.stamps[:0])
        state.frame["volume"] = 0.0
        return
    # Before a missing volume may become a zero one.
    state.rows("zero_volume", state.values("volume") == 0)
    state.rows("nan_volume", ~np.isfinite(state.values("volume")))
    state.rows("negative_volume", state.values("volume") < 0)
    if "other_volume" in state.frame:
        arrays = [state.values(name) for name in ("volume", "other_volume", "high", "low")]
        state.rows("volume_price_mismatch", checks.volume_mismatch(*arrays))


def _adjust(state: Cleaner, adjust: bool) -> None:
    """Prices * price_factor, volume / split_factor. The factors come from the source or from adjusted close /
    close."""
    if "price_factor" in state.frame and state.frame["price_factor"].notna().any():
        price, split = state.values("price_factor"), state.values("split_factor")
        ratios = np.concatenate([[1.0], split[1:] / split[:-1]])
    elif "adj_close" in state.frame and state.frame["adj_close"].notna().any():
        adjusted = state.values("adj_close")
        state.rows("nan", ~(np.isfinite(adjusted) & (adjusted > 0)), "the adjusted close is missing or not positive")
        price = state.values("adj_close") / state.values("close")
        ratios, broken = checks.factor_jumps(price, state.values("close"))
        if broken.any():
            state.note(
                "mixed_adjustment",
                int(broken.sum()),
                state.stamps[broken],
                "the factor adjusted / raw close jumps where the price does not",
            )
        # Volume before a split counts in today's shares; what lies after the last row of the file is not known.
        split = 1.0 / np.concatenate([np.cumprod(ratios[::-1])[::-1][1:], [1.0]])
    else:
        return
    at = np.abs(np.log(ratios)) > np.log(1.2)
    detail = ", ".join(f"{ratio:g} for 1" for ratio in ratios[at])
    if not adjust:
        if at.any():
            state.note(
                "unadjusted_split", int(at.sum()), state.stamps[at], f"{detail}, left as it is by data.adjust=false"
            )
        return
    if at.any():
        state.note("split", int(at.sum()), state.stamps[at], f"{detail}, adjusted in prices and volume")
    for name in PRICES:
        state.frame[name] = state.values(name) * price
    state.frame["volume"] = state.values("volume") / split


def _series(state: Cleaner, adjust: bool) -> None:
    prices = state.frame[PRICES].to_numpy(dtype=np.float64)
    known = {finding.kind for finding in state.findings}
    if "unadjusted_split" not in known:
        jumps = checks.suspected_splits(state.values("open"), state.values("close"), state.values("volume"))
        if jumps.any():
            state.note("unadjusted_split", int(jumps.sum()), state.stamps[jumps])
    masks = {
        "stale": checks.stale_bars(prices),
        "outlier": checks.outlier_returns(prices[:, 3]),
        "range_outlier": checks.outlier_ranges(prices[:, 1], prices[:, 2]),
    }
    # All of them are seen on the same rows before any of them drops some.
    stamps = state.stamps
    for kind, mask in masks.items():
        state.rows(kind, np.isin(state.stamps, stamps[mask]), _largest(kind, prices, mask))


def _largest(kind: str, prices: np.ndarray, mask: np.ndarray) -> str:
    if kind == "outlier" and mask.any():
        moves = np.exp(checks.log_returns(prices[:, 3])[mask]) - 1
        return f"largest move {moves[np.abs(moves).argmax()]:+.1%}"
    if kind == "range_outlier" and mask.any():
        return f"largest high / low {(prices[mask, 1] / prices[mask, 2]).max():.4g}"
    return ""
