"""The two loops that train an agent in the market: on-policy (PPO) and off-policy (SAC, TD3).

Shapes: N environments, K account fields, A assets, O observation. Buffers hold the bar index and the account, never the
observation: `observe` encodes the bar when it is needed, from a resident table (frozen forecaster) or through the
network that is being trained (hybrid).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.base import Agent, transition_batch
from trade_agent.agents.ppo import PPO
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.envs.market import (
    MarketRules,
    MarketSeries,
    MarketState,
    account_fields,
    account_observation,
    auto_reset,
    reset,
    step,
)
from trade_agent.errors import TrainingDivergedError

Observe = Callable[[Tensor, Tensor], Tensor]  # bar index [B], account [B, K] -> observation [B, O]
Learn = Callable[[TensorDict], dict[str, Tensor]]  # one gradient step on a batch with observations
METRICS_EVERY = 50  # updates between two looks at the metrics, each of which waits for the device


class Experience(NamedTuple):
    """One step of N environments; `next_account` is taken before any reset."""

    t: Tensor  # [N] int64
    account: Tensor  # [N, K] float32
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    next_account: Tensor  # [N, K] float32


class TrainingMarket:
    """N accounts on random episodes of a split's rows, restarted as soon as they end.

    An episode starts at a random row and lasts `episode_bars` steps (or to the last row). Rewards are multiplied by
    `reward_scale`.
    """

    def __init__(
        self,
        *,
        series: MarketSeries,
        rules: MarketRules,
        rows: range,
        num_envs: int,
        episode_bars: int,
        reward_scale: float,
        generator: torch.Generator,
    ) -> None:
        self.series, self.rules, self.rows, self.num_envs = series, rules, rows, num_envs
        self.episode_bars = min(episode_bars, len(rows) - 1)
        self.reward_scale, self.generator = reward_scale, generator
        self.num_assets = series.num_assets
        self.account_dim = len(account_fields(rules, series.num_assets))
        start, end = self._draw()
        # Staggered lengths: environments that all restart together would feed a rollout with one phase of an episode.
        spread = torch.linspace(1, self.episode_bars, num_envs, device=start.device).round().long()
        self.state: MarketState = reset(series, rules, start, torch.minimum(start + spread, end))

    def _draw(self) -> tuple[Tensor, Tensor]:
        last_start = self.rows.stop - 1 - self.episode_bars
        start = torch.randint(
            self.rows.start,
            last_start + 1,
            (self.num_envs,),
            generator=self.generator,
            device=self.series.close.device,
        )
        return start, start + self.episode_bars

    def account(self) -> Tensor:
        return account_observation(self.series, self.rules, self.state)

    def step(self, action: Tensor) -> Experience:
        """One bar for every account; `action` [N, A] in [-1, 1]."""
        before, account = self.state, self.account()
        after, result = step(self.series, self.rules, before, action)
        next_account = account_observation(self.series, self.rules, after)
        start, end = self._draw()
        done = result.terminated | result.truncated
        self.state = auto_reset(self.series, self.rules, after, done, start, end)
        reward = result.reward * self.reward_scale
        return Experience(before.t, account, reward, result.terminated, result.truncated, next_account)


@dataclass(slots=True)
class Best:
    """Keeps the state with the highest validation score."""

    score: float = -math.inf
    state: dict[str, Any] | None = None
    env_steps: int = 0

    def consider(self, score: float, state: Callable[[], dict[str, Any]], env_steps: int) -> None:
        if score > self.score:
            self.score, self.env_steps = score, env_steps
            self.state = copy_state(state())


def copy_state(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested state dict that later training does not change."""
    return {
        key: copy_state(value) if isinstance(value, dict) else value.clone() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a loop calls back: `check(env_steps)` after each part of the budget, `advance` for the progress bar."""

    check: Callable[[int], None]
    advance: Callable[[int], None]
    metrics: Callable[[int, dict[str, float]], None]


def train_on_policy(
    agent: PPO,
    *,
    market: TrainingMarket,
    observe: Observe,
    learn: Learn,
    total_env_steps: int,
    rollout_steps: int,
    epochs: int,
    batch_size: int,
    validation_checks: int,
    generator: torch.Generator,
    hooks: Hooks,
) -> int:
    """Collect a rollout, estimate advantages, go over it `epochs` times; returns the env steps that were made."""
    device = market.series.close.device
    buffer = RolloutBuffer(
        num_steps=rollout_steps,
        num_envs=market.num_envs,
        private_dim=market.account_dim,
        action_dim=market.num_assets,
        device=device,
    )
    rounds = math.ceil(total_env_steps / (rollout_steps * market.num_envs))
    env_steps = updates = 0
    for index in range(rounds):
        buffer.clear()
        while not buffer.full:
            with torch.no_grad():
                action = agent.act(observe(market.state.t, market.account()), deterministic=False)
                seen = market.step(action.action)
            buffer.add(
                t=seen.t,
                private=seen.account,
                raw=action.raw,
                log_prob=action.log_prob,
                reward=seen.reward,
                terminated=seen.terminated,
                truncated=seen.truncated,
                next_private=seen.next_account,
            )
            hooks.advance(market.num_envs)
        env_steps += rollout_steps * market.num_envs
        value, next_value = _values(agent, buffer, observe)
        buffer.finish(value=value, next_value=next_value, gamma=agent.gamma, gae_lambda=agent.gae_lambda)
        for _ in range(epochs):
            for batch in buffer.minibatches(batch_size, generator):
                batch["observation"] = observe(batch["t"].long(), batch["private"])
                metrics = learn(batch)
                updates += 1
        hooks.metrics(env_steps, finite(metrics, env_steps))
        if _due(index, rounds, validation_checks):
            hooks.check(env_steps)
    return env_steps


@torch.no_grad()
def _values(agent: PPO, buffer: RolloutBuffer, observe: Observe) -> tuple[Tensor, Tensor]:
    """V of every observation of a rollout and of the one after it, [S, N] each."""
    shape = buffer.t.shape
    t = buffer.t.flatten().long()
    value = agent.value(observe(t, buffer.private.flatten(0, 1)))
    next_value = agent.value(observe(t + 1, buffer.next_private.flatten(0, 1)))
    return value.view(shape), next_value.view(shape)


def train_off_policy(
    agent: Agent,
    *,
    market: TrainingMarket,
    replay: ReplayBuffer,
    observe: Observe,
    learn: Learn,
    total_env_steps: int,
    warmup_env_steps: int,
    random_warmup: bool,
    env_steps_per_update: int,
    batch_size: int,
    validation_checks: int,
    generator: torch.Generator,
    hooks: Hooks,
) -> int:
    """Act, store, learn; uniformly random actions first unless the agent is trained already. Returns env steps."""
    device = market.series.close.device
    rounds = math.ceil(total_env_steps / market.num_envs)
    owed = 0.0
    updates = 0
    metrics: dict[str, Tensor] = {}
    for index in range(rounds):
        env_steps = (index + 1) * market.num_envs
        if random_warmup and env_steps <= warmup_env_steps:
            shape = (market.num_envs, market.num_assets)
            action = torch.rand(shape, generator=generator, device=device) * 2.0 - 1.0
        else:
            with torch.no_grad():
                action = agent.act(observe(market.state.t, market.account()), deterministic=False).action
        seen = market.step(action)
        replay.extend(Transitions(seen.t, seen.account, action, seen.reward, seen.terminated, seen.next_account))
        hooks.advance(market.num_envs)
        if env_steps > warmup_env_steps:
            owed += market.num_envs / env_steps_per_update
            while owed >= 1.0:
                metrics = learn(observed_batch(replay.sample(batch_size, generator), observe))
                owed, updates = owed - 1.0, updates + 1
                if updates % METRICS_EVERY == 0:
                    hooks.metrics(env_steps, finite(metrics, env_steps))
        if _due(index, rounds, validation_checks):
            hooks.check(env_steps)
    if updates % METRICS_EVERY:
        hooks.metrics(env_steps, finite(metrics, env_steps))
    return rounds * market.num_envs


def observed_batch(sample: Transitions, observe: Observe) -> TensorDict:
    """A batch in the layout of the agents. The next observation belongs to the target: no gradient runs through it."""
    t = sample.t.long()
    with torch.no_grad():
        following = observe(t + 1, sample.next_private)
    batch = transition_batch(
        observation=observe(t, sample.private),
        action=sample.action,
        reward=sample.reward,
        next_observation=following,
        terminated=sample.terminated,
    )
    batch["t"] = t
    return batch


def _due(index: int, rounds: int, checks: int) -> bool:
    """True `checks` times over the rounds, evenly spread, and always at the last one."""
    return (index + 1) * checks // rounds > index * checks // rounds


def finite(metrics: dict[str, Tensor], env_steps: int) -> dict[str, float]:
    """Metrics as numbers. Raises TrainingDivergedError naming the first that is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"{name} is {value} after {env_steps} environment steps",
                "lower model.learning_rate or model.reward_scale",
            )
    return values
