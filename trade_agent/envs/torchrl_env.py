"""The market as a batched TorchRL environment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from trade_agent.envs.episodes import observation_size, observe, plan_episodes
from trade_agent.envs.market import MarketState, StepResult, auto_reset, reset, step
from trade_agent.envs.rules import MarketRules, position_actions
from trade_agent.envs.series import MarketSeries


class MarketEnv(EnvBase):
    """``num_envs`` accounts on one series.

    features: [T, A, F] float32, finite on the rows that are observed. rows: the bars episodes may observe.
    episode_bars: steps of an episode, None for all rows. random_starts: uniform start rows from this environment's own
    generator (``set_seed``), else every episode starts at the first row.
    positions: None for a continuous action [N, A] in [-1, 1]; else the action [N, A] int64 picks one of these fractions
    of max_weight per asset.

    ``step`` returns the true last observation of an episode, with ``truncated`` for its end and ``terminated`` for
    ruin; ``reset`` starts only the accounts that "_reset" names, as ``step_and_maybe_reset`` and collectors ask for it.
    A recurrent policy needs ``TransformedEnv(env, InitTracker())``: its "is_init" is what clears the hidden state of an
    account that starts anew.

    Raises ConfigError and DataError as ``plan_episodes`` and ``position_actions`` do.
    """

    def __init__(
        self,
        *,
        series: MarketSeries,
        rules: MarketRules,
        features: Tensor,
        rows: range,
        num_envs: int,
        episode_bars: int | None = None,
        random_starts: bool = True,
        window_bars: int = 1,
        positions: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        device = series.close.device
        self._episodes = plan_episodes(
            series,
            features,
            rows=rows,
            episode_bars=episode_bars,
            random_starts=random_starts,
            window_bars=window_bars,
        )
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self.series, self.rules, self.window_bars = series, rules, window_bars
        self.features = features.to(device=device, dtype=torch.float32)
        self._positions = None if positions is None else position_actions(rules, positions).to(device)
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._state: MarketState | None = None
        self._result: StepResult | None = None
        self._make_specs(num_envs)

    def _make_specs(self, num_envs: int) -> None:
        shape = (num_envs, self.series.num_assets)
        size = observation_size(self.rules, self.features, self.window_bars)
        flag = Binary(n=1, shape=(num_envs, 1), dtype=torch.bool, device=self.device)
        self.observation_spec = Composite(
            observation=Unbounded(shape=(num_envs, size), dtype=torch.float32, device=self.device), shape=(num_envs,)
        )
        if self._positions is None:
            self.action_spec = Bounded(-1.0, 1.0, shape=shape, dtype=torch.float32, device=self.device)
        else:
            self.action_spec = Categorical(len(self._positions), shape=shape, dtype=torch.int64, device=self.device)
        self.reward_spec = Unbounded(shape=(num_envs, 1), dtype=torch.float32, device=self.device)
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,), device=self.device
        )

    @property
    def state(self) -> MarketState | None:
        """Accounts after the last reset or step."""
        return self._state

    @property
    def result(self) -> StepResult | None:
        """Costs, equity and weights of the last step."""
        return self._result

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        start = self._draw_starts()
        end = start + self._episodes.length
        asked = None if tensordict is None else tensordict.get("_reset", None)
        if asked is None or self._state is None:
            self._state = reset(self.series, self.rules, start, end)
        else:
            self._state = auto_reset(self.series, self.rules, self._state, asked.reshape(-1), start, end)
        never = torch.zeros((*self.batch_size, 1), dtype=torch.bool, device=self.device)
        return TensorDict(
            {"observation": self._observe(), "done": never, "terminated": never.clone(), "truncated": never.clone()},
            batch_size=self.batch_size,
            device=self.device,
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        assert self._state is not None, "reset comes first"
        action = tensordict.get("action")
        if self._positions is not None:
            action = self._positions[action]
        self._state, self._result = step(self.series, self.rules, self._state, action)
        terminated, truncated = self._result.terminated.unsqueeze(-1), self._result.truncated.unsqueeze(-1)
        return TensorDict(
            {
                "observation": self._observe(),
                "reward": self._result.reward.unsqueeze(-1),
                "done": terminated | truncated,
                "terminated": terminated,
                "truncated": truncated,
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _observe(self) -> Tensor:
        assert self._state is not None
        return observe(self.series, self.rules, self.features, self._state, self.window_bars)

    def _draw_starts(self) -> Tensor:
        offsets = torch.randint(
            self._episodes.num_starts, tuple(self.batch_size), generator=self._generator, device=self.device
        )
        return self._episodes.first + offsets

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)
