"""What the environment faces share: which bars an episode covers, and the observation at a bar.

An observation is features[t - window + 1 .. t], oldest bar first, flattened, followed by the account fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trade_agent.envs.market import MarketState, account_fields, account_observation
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Episodes:
    """Episodes of ``length`` steps within the bars ``first`` .. ``last`` (both observed, ``last`` only as the end)."""

    first: int
    last: int
    length: int
    random_starts: bool

    @property
    def num_starts(self) -> int:
        """Rows an episode can start at: all of them leave room for its whole length."""
        return self.last - self.first - self.length + 1 if self.random_starts else 1


def plan_episodes(
    series: MarketSeries,
    features: Tensor,
    *,
    rows: range,
    episode_bars: int | None,
    random_starts: bool,
    window_bars: int,
) -> Episodes:
    """Check that series, features and rows fit together; None for ``episode_bars`` means all rows in one episode.

    Raises ConfigError for lengths that do not fit into ``rows``, DataError for features of another shape or with values
    that are not finite where an observation would show them.
    """
    if features.ndim != 3 or features.shape[:2] != (series.num_bars, series.num_assets):
        raise DataError(
            f"features have shape {tuple(features.shape)}, the series has {series.num_bars} bars and "
            f"{series.num_assets} assets",
            "give features of shape [bars, assets, features] made from the same bars",
        )
    if rows.step != 1 or not 0 <= rows.start < rows.stop <= series.num_bars:
        raise ConfigError(f"rows {rows} are not bars of the series", f"use a range within 0..{series.num_bars}")
    if window_bars < 1 or rows.start < window_bars - 1:
        raise ConfigError(
            f"a window of {window_bars} bars does not fit before row {rows.start}",
            f"start the rows at bar {max(window_bars - 1, 0)} or later, or use a shorter window of at least 1",
        )
    available = len(rows) - 1
    length = available if episode_bars is None else episode_bars
    if not 1 <= length <= available:
        raise ConfigError(
            f"env.episode_bars is {length} and the rows hold {available} steps", "use between 1 and that many bars"
        )
    first = rows.start - window_bars + 1
    if not bool(torch.isfinite(features[first : rows.stop]).all()):
        raise DataError(
            f"features are not finite within rows {first}..{rows.stop - 1}",
            "start the rows after the warm-up and fill the features of assets that are not listed",
        )
    return Episodes(first=rows.start, last=rows.stop - 1, length=length, random_starts=random_starts)


def observation_size(rules: MarketRules, features: Tensor, window_bars: int) -> int:
    """Numbers in one observation, for features [T, A, F]."""
    _, num_assets, num_features = features.shape
    return window_bars * num_assets * num_features + len(account_fields(rules, num_assets))


def observe(
    series: MarketSeries, rules: MarketRules, features: Tensor, state: MarketState, window_bars: int = 1
) -> Tensor:
    """Observation [N, window_bars * A * F + K] float32 at the close of t, from features [T, A, F] float32."""
    if window_bars == 1:
        market = features.index_select(0, state.t)
    else:
        # Rows of a view of all windows: [T - W + 1, W, A, F].
        market = features.unfold(0, window_bars, 1).movedim(-1, 1).index_select(0, state.t - (window_bars - 1))
    return torch.cat((market.flatten(1), account_observation(series, rules, state)), dim=-1)
