"""The market as gymnasium environments: one account, or a batch that resets itself.

Both are thin faces of the pure step; torch tensors stay inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from trade_agent.envs.episodes import Episodes, observation_size, observe, plan_episodes
from trade_agent.envs.market import MarketState, auto_reset, reset, step
from trade_agent.envs.rules import MarketRules, position_actions
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError

Array = np.ndarray[Any, Any]


class _Accounts:
    """N accounts behind numpy arrays, and the spaces of one of them."""

    def __init__(
        self,
        series: MarketSeries,
        rules: MarketRules,
        features: Tensor,
        *,
        episodes: Episodes,
        window_bars: int,
        positions: Sequence[float] | None,
    ) -> None:
        self.series, self.rules, self.episodes, self.window_bars = series, rules, episodes, window_bars
        self.device = series.close.device
        self.features = features.to(device=self.device, dtype=torch.float32)
        self.positions = None if positions is None else position_actions(rules, positions).to(self.device)
        self.state: MarketState | None = None
        size = observation_size(rules, features, window_bars)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(size,), dtype=np.float32)

    @property
    def action_space(self) -> spaces.Space[Any]:
        num_assets = self.series.num_assets
        if self.positions is None:
            return spaces.Box(-1.0, 1.0, shape=(num_assets,), dtype=np.float32)
        if num_assets == 1:
            return spaces.Discrete(len(self.positions))
        return spaces.MultiDiscrete([len(self.positions)] * num_assets)

    def start(self, rows: Array, chosen: Array | None = None) -> None:
        """Start at ``rows`` [N], only where ``chosen`` [N] when that is given."""
        start = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        end = (start + self.episodes.length).clamp(max=self.episodes.last)
        if chosen is None or self.state is None:
            self.state = reset(self.series, self.rules, start, end)
        else:
            mask = torch.as_tensor(chosen, device=self.device)
            self.state = auto_reset(self.series, self.rules, self.state, mask, start, end)

    def observation(self) -> Array:
        assert self.state is not None
        return _numpy(observe(self.series, self.rules, self.features, self.state, self.window_bars))

    def step(self, action: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Reward, terminated, truncated and info, each [N].

        Raises ResetNeeded before the first reset, InvalidAction for what is no action of every account.
        """
        if self.state is None:
            raise ResetNeeded("step came before reset; call reset first")
        self.state, result = step(self.series, self.rules, self.state, self._chosen(action, self.state.t.shape[0]))
        info = self.info()
        info |= {name: _numpy(getattr(result, name)) for name in ("cost", "financing", "turnover")}
        return _numpy(result.reward.to(torch.float64)), _numpy(result.terminated), _numpy(result.truncated), info

    def _chosen(self, action: Any, num_accounts: int) -> Tensor:
        """Actions [N, A] in [-1, 1] (what lies outside is clipped by the market); dimensions of 1 may be missing."""
        wanted = np.asarray(action)
        num_assets = self.series.num_assets
        needed = tuple(size for size in (num_accounts, num_assets) if size > 1)
        if wanted.ndim > 2 or wanted.squeeze().shape != needed:
            raise InvalidAction(
                f"an action of shape {wanted.shape} is not {num_assets} for each of {num_accounts} accounts"
            )
        choice = torch.as_tensor(wanted, device=self.device).reshape(num_accounts, num_assets)
        if self.positions is None:
            if not np.isfinite(wanted).all():
                raise InvalidAction(f"the action {wanted} is not finite")
            return choice
        if not np.issubdtype(wanted.dtype, np.integer) or wanted.min() < 0 or wanted.max() >= len(self.positions):
            raise InvalidAction(f"the action {wanted} is not an index of the {len(self.positions)} positions")
        return self.positions[choice]

    def info(self) -> dict[str, Array]:
        """equity and cost in money, turnover as a fraction of equity, bar: the bar observed; all of the last step."""
        assert self.state is not None
        nothing = np.zeros(self.state.t.shape[0])
        return {
            "equity": _numpy(self.state.equity),
            "bar": _numpy(self.state.t),
            "cost": nothing,
            "financing": nothing.copy(),
            "turnover": nothing.copy(),
        }

    def draw(self, generator: np.random.Generator) -> int:
        """A start row; every episode takes one draw from the generator of its account."""
        return self.episodes.first + int(generator.integers(self.episodes.num_starts))

    def given(self, start: Any, count: int) -> Array:
        """``options["start"]`` as start rows [count]."""
        wanted = np.asarray(start)
        if not np.issubdtype(wanted.dtype, np.integer) or wanted.shape not in ((), (count,)):
            raise ConfigError(f"options['start'] is {start}", f"give one row, or {count}")
        rows = np.broadcast_to(wanted.astype(np.int64), (count,)).copy()
        if rows.min() < self.episodes.first or rows.max() >= self.episodes.last:
            raise ConfigError(
                f"options['start'] is {start}", f"start within {self.episodes.first}..{self.episodes.last - 1}"
            )
        return rows


class MarketGymEnv(gymnasium.Env[Array, Any]):
    """One account; arguments as in ``MarketEnv``.

    ``reset(seed=...)`` seeds the start rows, ``reset(options={"start": row})`` picks one. A discrete action is an int
    for one asset (Discrete) and A ints for several (MultiDiscrete).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the type that gymnasium declares

    def __init__(
        self,
        *,
        series: MarketSeries,
        rules: MarketRules,
        features: Tensor,
        rows: range,
        episode_bars: int | None = None,
        random_starts: bool = True,
        window_bars: int = 1,
        positions: Sequence[float] | None = None,
    ) -> None:
        episodes = plan_episodes(
            series,
            features,
            rows=rows,
            episode_bars=episode_bars,
            random_starts=random_starts,
            window_bars=window_bars,
        )
        self._accounts = _Accounts(
            series, rules, features, episodes=episodes, window_bars=window_bars, positions=positions
        )
        self.observation_space = self._accounts.observation_space
        self.action_space = self._accounts.action_space
        self._over = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        start = (options or {}).get("start")
        rows = [self._accounts.draw(self.np_random)] if start is None else self._accounts.given(start, 1)
        self._accounts.start(np.asarray(rows))
        self._over = False
        return self._accounts.observation()[0], _first(self._accounts.info())

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Raises ResetNeeded when no episode is running, InvalidAction for what is no action."""
        if self._over:
            raise ResetNeeded("the episode is over; call reset first")
        reward, terminated, truncated, info = self._accounts.step(action)
        self._over = bool(terminated[0] | truncated[0])
        observation = self._accounts.observation()[0]
        return observation, float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)


class MarketVectorEnv(VectorEnv[Array, Any, Array]):
    """``num_envs`` accounts in one batch; arguments as in ``MarketEnv``.

    An account that ends restarts in the same step: its last observation is in ``info["final_obs"]`` and its last info
    in ``info["final_info"]``, with masks ``_final_obs`` and ``_final_info``.

    Every account draws its start rows from a generator of its own, as the environments of a ``SyncVectorEnv`` do:
    ``reset(seed=...)`` takes one seed s for the seeds s, s + 1, ..., or a list of num_envs (None leaves that generator
    as it is). ``options`` takes "start", one row or [num_envs], and "reset_mask" [num_envs] bool, the accounts to
    reset.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

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
    ) -> None:
        episodes = plan_episodes(
            series,
            features,
            rows=rows,
            episode_bars=episode_bars,
            random_starts=random_starts,
            window_bars=window_bars,
        )
        self._accounts = _Accounts(
            series, rules, features, episodes=episodes, window_bars=window_bars, positions=positions
        )
        self.num_envs = num_envs
        self.single_observation_space = self._accounts.observation_space
        self.single_action_space = self._accounts.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random() for _ in range(num_envs)]

    @property  # type: ignore[misc]  # a tuple that is only read, as SyncVectorEnv has it
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        return tuple(generator for generator, _ in self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(seed for _, seed in self._generators)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Raises ConfigError for seeds, rows or a mask that do not fit ``num_envs``."""
        options = options or {}
        chosen = self._mask(options.get("reset_mask"))
        for i, account_seed in enumerate(self._seeds(seed)):
            if account_seed is not None and chosen[i]:
                self._generators[i] = seeding.np_random(account_seed)
        self._restart(chosen, options.get("start"))
        return self._accounts.observation(), self._accounts.info()

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Raises ResetNeeded before the first reset, InvalidAction for what is no action of every account."""
        reward, terminated, truncated, info = self._accounts.step(actions)
        observation = self._accounts.observation()
        done = terminated | truncated
        if not done.any():
            return observation, reward, terminated, truncated, dict(info)
        final = {"final_obs": observation, "_final_obs": done, "final_info": info, "_final_info": done}
        self._restart(done)
        fresh = self._accounts.info()
        current = {name: np.where(done, fresh[name], values) for name, values in info.items()}
        return self._accounts.observation(), reward, terminated, truncated, current | final

    def _restart(self, chosen: Array, start: Any = None) -> None:
        """Accounts begin anew where ``chosen`` [num_envs]; nobody else's generator moves."""
        if start is None:
            rows = np.full(self.num_envs, self._accounts.episodes.first)
            rows[chosen] = [self._accounts.draw(self._generators[i][0]) for i in np.flatnonzero(chosen)]
        else:
            rows = self._accounts.given(start, self.num_envs)
        self._accounts.start(rows, chosen)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(f"reset got {len(seed)} seeds for {self.num_envs} accounts", "give one seed each, or one")
        return seed

    def _mask(self, mask: Any) -> Array:
        """Accounts that a reset is for: all of them without a mask, and the first time."""
        if mask is None or self._accounts.state is None:
            return np.ones(self.num_envs, dtype=bool)
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_:
            raise ConfigError(
                f"options['reset_mask'] is {chosen.dtype} of shape {chosen.shape}", f"give {self.num_envs} booleans"
            )
        return chosen


def _numpy(values: Tensor) -> Array:
    return values.cpu().numpy().copy()  # a view would let the caller write into the state


def _first(info: dict[str, Array]) -> dict[str, Any]:
    return {name: values[0].item() for name, values in info.items()}
