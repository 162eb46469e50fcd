"""G14: training an agent on the features of a frozen forecaster, against the same agent on the inputs alone."""

import torch
from torch import Tensor

from benchmarks.speed.env import random_walk
from benchmarks.speed.forecaster import WINDOW, network
from benchmarks.speed.measure import Figure, clock, in_turn
from trade_agent.agents.replay import ReplayBuffer
from trade_agent.agents.sac import SAC
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.networks.encoders import TableEncoder, build_table
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.learner import Learner
from trade_agent.training.reinforcement import Hooks, train_off_policy

NUM_BARS, INPUTS, NUM_ENVS, ENV_STEPS, BATCH = 5_000, 8, 16, 2_000, 128


def measure(repeats: int, device: torch.device) -> None:
    series, inputs = random_walk(NUM_BARS, device), torch.randn(NUM_BARS, 1, INPUTS, device=device)
    forecaster, seconds = network(INPUTS).to(device), clock(device)

    def with_forecaster() -> float:
        return seconds(lambda: train_on(series, build_table(forecaster, inputs, 4096)))

    def without() -> float:
        return seconds(lambda: train_on(series, inputs))

    ours, other = in_turn(with_forecaster, without, repeats)
    Figure(
        figure=f"G14 SAC with a frozen forecaster (its table included) against without, {ENV_STEPS} env steps",
        unit="s",
        ours=ours,
        peer=other,
        peer_name="without a forecaster",
        ratio=ours / other,
        target=1.1,
        device=device.type,
        remark="here the ratio is time with over time without: the target is a bound from above",
    ).print()


def train_on(series: MarketSeries, table: Tensor) -> None:
    """The off-policy loop in the settings of conf/model/sac.yaml; the agent sees ``table`` [T, 1, F]."""
    encoder = TableEncoder(table)
    env = TrainingMarket(
        series=series,
        rules=MarketRules(),
        rows=range(WINDOW, series.num_bars),
        num_envs=NUM_ENVS,
        episode_bars=256,
        reward_scale=100.0,
        generator=torch.Generator(table.device).manual_seed(0),
    )
    agent = SAC(
        observation_dim=encoder.output_dim + env.private_dim, action_dim=1, hidden_dims=(64, 64), device=table.device
    )

    def observe(t: Tensor, private: Tensor) -> Tensor:
        return torch.cat((encoder(t), private), dim=-1)

    generator = torch.Generator(table.device).manual_seed(1)
    train_off_policy(
        agent,
        env=env,
        replay=ReplayBuffer(capacity=ENV_STEPS, private_dim=env.private_dim, action_dim=1, device=table.device),
        observe=observe,
        learn=Learner(agent, observe),
        total_env_steps=ENV_STEPS,
        learning_rate_schedule="constant",
        n_step=1,
        warmup_env_steps=100,
        random_warmup=True,
        env_steps_per_update=4,
        batch_size=BATCH,
        validation_checks=1,
        generator=generator,
        session=no_checkpoints().session("speed", generator),
        hooks=Hooks(check=lambda _: None, skip=lambda _: None, advance=lambda _: None, metrics=lambda *_: None),
    )
