"""G5: a rollout with a policy, against TorchRL's Collector on our own TorchRL face."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType, set_exploration_type

from benchmarks.speed.env import random_walk
from benchmarks.speed.measure import Figure, clock, first_run, in_turn
from trade_agent.agents.ppo import PPO
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.agents.torchrl_modules import probabilistic_actor
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.episodes import observe
from trade_agent.envs.market import reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.envs.torchrl_env import MarketEnv

NUM_ENVS, NUM_STEPS, NUM_BARS, EPISODE_BARS, FEATURES = 1024, 128, 20_000, 256, 16
TARGETS = {"cpu": 3.0, "cuda": 10.0}


def measure(repeats: int, device: torch.device) -> None:
    torch.manual_seed(0)
    series, rules = random_walk(NUM_BARS, device), MarketRules()
    features, seconds = torch.randn(NUM_BARS, 1, FEATURES, device=device), clock(device)
    env = MarketEnv(
        series=series,
        rules=rules,
        features=features,
        rows=range(NUM_BARS),
        num_envs=NUM_ENVS,
        episode_bars=EPISODE_BARS,
    )
    agent = decided_agent(env.observation_spec["observation"].shape[-1], device)
    agrees = same_rollout(agent, series, rules, features)
    frames = NUM_ENVS * NUM_STEPS
    collector = Collector(env, probabilistic_actor(agent.policy), frames_per_batch=frames, total_frames=-1)
    batches = iter(collector)
    for compiled in (True, False):
        ours = rollout_of(agent, series, rules, features[:, 0], compiled)
        name = f"G5 rollout with a policy, {NUM_ENVS} accounts{'' if compiled else ', eager'}"
        if compiled:
            first_run(name, ours)
        side, other = in_turn(partial(seconds, ours), lambda: seconds(lambda: next(batches)), repeats)
        Figure(
            figure=name,
            unit="env steps/s",
            ours=frames / side,
            peer=frames / other,
            peer_name="TorchRL Collector",
            ratio=other / side,
            target=TARGETS[device.type] if compiled else None,
            agrees=agrees,
            device=device.type,
        ).print()
    collector.shutdown()


def decided_agent(observation_dim: int, device: torch.device | str = "cpu") -> PPO:
    """Away from the start, where every observation is answered with next to nothing."""
    agent = PPO(observation_dim=observation_dim, action_dim=1, device=device)
    with torch.no_grad():
        for parameter in agent.policy.get_submodule("mean").parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def rollout_of(
    agent: PPO, series: MarketSeries, rules: MarketRules, table: Tensor, compiled: bool
) -> Callable[[], None]:
    """What the on-policy loop does until its buffer is full."""
    torch.compiler.reset()
    env = TrainingMarket(
        series=series,
        rules=rules,
        rows=range(series.num_bars),
        num_envs=NUM_ENVS,
        episode_bars=EPISODE_BARS,
        reward_scale=1.0,
        generator=torch.Generator(table.device).manual_seed(0),
        compiled=compiled,
    )
    agent = copy.deepcopy(agent)
    if compiled:
        agent.fuse()
    buffer = RolloutBuffer(
        num_steps=NUM_STEPS, num_envs=NUM_ENVS, private_dim=env.private_dim, action_dim=1, device=env.device
    )

    @torch.no_grad()
    def run() -> None:
        buffer.clear()
        while not buffer.full:
            observation = torch.cat((table.index_select(0, env.t), env.private), dim=-1)
            action = agent.act(observation, deterministic=False)
            seen = env.step(action.action)
            buffer.add(
                t=seen.t,
                private=seen.private,
                raw=action.raw,
                log_prob=action.log_prob,
                reward=seen.reward,
                terminated=seen.terminated,
                truncated=seen.truncated,
                next_private=seen.next_private,
            )

    return run


@torch.no_grad()
def same_rollout(agent: PPO, series: MarketSeries, rules: MarketRules, features: Tensor) -> bool:
    """Whether the policy without chance earns the same rewards in TorchRL's rollout and in ours."""
    env = MarketEnv(
        series=series, rules=rules, features=features, rows=range(NUM_BARS), num_envs=4, random_starts=False
    )
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        theirs = env.rollout(NUM_STEPS, probabilistic_actor(agent.policy))["next", "reward"][..., 0]
    start = torch.zeros(4, dtype=torch.int64, device=features.device)
    state, rewards = reset(series, rules, start, start + NUM_BARS - 1), []
    for _ in range(NUM_STEPS):
        action = agent.act(observe(series, rules, features, state), deterministic=True).action
        state, result = step(series, rules, state, action)
        rewards.append(result.reward)
    return torch.allclose(torch.stack(rewards, dim=1), theirs, rtol=1e-5, atol=1e-8)
