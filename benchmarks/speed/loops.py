"""The training loops at the size of the examples, one callable each: collecting, updates, and nothing beside them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.speed.env import random_walk
from benchmarks.speed.forecaster import BATCH as WINDOWS
from benchmarks.speed.forecaster import WINDOW, network
from trade_agent.agents.builders import AGENT_BUILDERS
from trade_agent.agents.copies import agents_from_spec
from trade_agent.agents.ppo import PPO
from trade_agent.agents.replay import ReplayBuffer
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training.capture import CapturedLearner
from trade_agent.training.checkpoint import Checkpoints, no_checkpoints
from trade_agent.training.distributed import World
from trade_agent.training.graphs import Graphs
from trade_agent.training.learner import Learner
from trade_agent.training.models import Forecaster
from trade_agent.training.reinforcement import Hooks, train_off_policy, train_on_policy
from trade_agent.training.stages.hybrid import JointLearner
from trade_agent.training.supervised import FitSettings, Targets, fit_forecaster, samples

ALGORITHMS = tuple(AGENT_BUILDERS)
NUM_BARS, NUM_ENVS, BATCH, FEATURES = 2_000, 16, 128, 8
ROLLOUT_STEPS = 64


class AgentLoop(NamedTuple):
    """``run`` trains what ``learner`` holds in ``market``."""

    run: Callable[[], object]
    learner: Learner
    market: TrainingMarket


def agent_loop(
    algorithm: str,
    *,
    joint: bool,
    updates: int,
    device: torch.device,
    settings: dict[str, Any] | None = None,
    copies: int = 1,
    graphs: Callable[[torch.Generator], Graphs] | None = None,
    checkpoints: Checkpoints | None = None,
) -> AgentLoop:
    """Training of an agent, on a table of features or (``joint``) together with its forecaster, for so many updates.

    settings: of the agent, beside its defaults. copies: agents side by side, for so many updates each. graphs: where
    updates and steps are captured.
    """
    torch.manual_seed(0)
    generator = torch.Generator(device).manual_seed(1)
    market, inputs = make_market(generator, copies * NUM_ENVS), torch.randn(NUM_BARS, 1, FEATURES, device=device)
    forecaster = network(FEATURES).to(device).eval()
    width = FEATURES + joint * forecaster.feature_dim + market.private_dim
    spec = {"name": algorithm, "observation_dim": width, "action_dim": 1, **(settings or {})}
    agent = agents_from_spec(spec, copies, device=device)
    learner = _joint_learner(agent, forecaster, inputs) if joint else Learner(agent, _observe(inputs))
    where = graphs(generator) if graphs else None
    every: dict[str, Any] = {
        "env": market,
        "observe": learner.observe,
        "learn": CapturedLearner(learner, where) if where else learner,
        "graphs": where,
        "learning_rate_schedule": "linear",
        "batch_size": BATCH,
        "validation_checks": 1,
        "generator": generator,
        "hooks": Hooks(check=lambda _: None, skip=lambda _: None, advance=lambda _: None, metrics=lambda *_: None),
        "session": (checkpoints or no_checkpoints()).session("speed", generator),
    }
    if isinstance(agent, PPO):
        rollout = ROLLOUT_STEPS * NUM_ENVS
        rounds = updates * BATCH // rollout
        run = partial(train_on_policy, total_env_steps=rounds * rollout, rollout_steps=ROLLOUT_STEPS, epochs=1)
        return AgentLoop(partial(run, agent, **every), learner, market)
    replay = ReplayBuffer(capacity=10_000, private_dim=market.private_dim, action_dim=1, copies=copies, device=device)
    warmup, per_update = 4 * NUM_ENVS, 4
    run = partial(
        train_off_policy,
        agent,
        replay=replay,
        total_env_steps=warmup + per_update * updates,
        n_step=1,
        warmup_env_steps=warmup,
        random_warmup=True,
        env_steps_per_update=per_update,
        **every,
    )
    return AgentLoop(run, learner, market)


def forecaster_loop(*, updates: int, device: torch.device) -> Callable[[], object]:
    """One epoch of so many minibatches."""
    torch.manual_seed(0)
    series, targets = torch.randn(NUM_BARS, 1, FEATURES, device=device), make_targets(device)
    pairs = samples(range(WINDOW - 1, NUM_BARS), targets.valid)
    train = pairs.repeat(updates * WINDOWS // len(pairs) + 1, 1)[: updates * WINDOWS]
    net, generator = network(FEATURES).to(device), torch.Generator(device).manual_seed(1)
    settings = FitSettings(
        epochs=1, patience=1, batch_size=WINDOWS, learning_rate=1e-3, weight_decay=1e-4, direction_weight=0.5
    )
    return lambda: fit_forecaster(
        net,
        series=series,
        targets=targets,
        train=train,
        validation=train[:WINDOWS],
        settings=settings,
        generator=generator,
        session=no_checkpoints().session("speed", generator),
    )


def make_market(generator: torch.Generator, num_envs: int) -> TrainingMarket:
    walk, device = random_walk(NUM_BARS), generator.device
    return TrainingMarket(
        series=MarketSeries(*(values.to(device) for values in (walk.open, walk.close, walk.tradable))),
        rules=MarketRules(),
        rows=range(WINDOW, NUM_BARS),
        num_envs=num_envs,
        episode_bars=64,
        reward_scale=100.0,
        generator=generator,
    )


def make_targets(device: torch.device) -> Targets:
    returns = torch.randn(NUM_BARS, 1, 1, device=device)
    return Targets(returns, torch.ones_like(returns, dtype=torch.bool), torch.ones(1, device=device))


def _observe(inputs: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    table = inputs[:, 0]
    return lambda t, private: torch.cat((table.index_select(0, t), private), dim=-1)


def _joint_learner(agent: Any, net: Any, inputs: Tensor) -> JointLearner:
    return JointLearner(
        agent,
        Forecaster(network=net, spec={}, horizons=(1,), target_scale=torch.ones(1)),
        features=inputs,
        targets=make_targets(inputs.device),
        label_stop=NUM_BARS - 1,
        forecast_loss_weight=1.0,
        direction_loss_weight=0.5,
        learning_rate=1e-4,
        frozen_updates=0,
        world=World(),
    )
