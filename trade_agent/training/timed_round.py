"""A round of training on noise: what `device.compile=auto` times."""

import math
from collections.abc import Callable

import torch
from tensordict import TensorDict

from trade_agent.agents.base import Agent, transition_batch
from trade_agent.agents.copies import agents_from_spec
from trade_agent.agents.ppo import PPO
from trade_agent.config.schema import AgentModel, OffPolicyModel, PpoModel
from trade_agent.envs.batched import TrainingMarket

TIMED_STEPS = 16  # of the market in a round of SAC and TD3


def steps_of_round(model: AgentModel) -> int:
    """Steps of all environments in one round: a rollout of PPO."""
    return model.rollout_steps if isinstance(model, PpoModel) else TIMED_STEPS


def one_round(market: TrainingMarket, agent: Agent, model: AgentModel, compiled: bool) -> Callable[[], object]:
    """What compiling changes of a round: the steps of the market, and actions and updates of another agent (or stack of
    copies) like this one, in the share of one process."""
    steps, scratch = steps_of_round(model), agents_from_spec(agent.spec(), agent.copies, device=market.device)
    observation = torch.randn(market.num_envs, agent.spec()["observation_dim"], device=market.device)
    env_steps = steps * model.num_envs
    if isinstance(model, PpoModel):
        updates, rows = model.epochs * math.ceil(env_steps / model.batch_size), min(env_steps, model.batch_size)
    else:
        assert isinstance(model, OffPolicyModel)
        updates, rows = env_steps // model.env_steps_per_update, model.batch_size
    batch = minibatch_of_noise(scratch, rows * market.num_envs // model.num_envs, market)
    if compiled:
        scratch.fuse()

    def work() -> None:
        for _ in range(steps):
            market.step(scratch.act(observation, deterministic=False).action)
        for _ in range(updates):
            scratch.update(batch)

    return work


def minibatch_of_noise(agent: Agent, rows: int, market: TrainingMarket) -> TensorDict:
    """What ``agent`` learns from, with ``rows`` rows."""
    observation, following = torch.randn(2, rows, agent.spec()["observation_dim"], device=market.device)
    drawn = agent.act(observation, deterministic=False)
    noise, other = torch.randn(2, rows, device=market.device)
    if isinstance(agent, PPO):
        fields = {"observation": observation, "raw": drawn.raw, "log_prob": drawn.log_prob}
        return TensorDict(fields | {"advantage": noise, "value_target": other}, batch_size=[rows])
    return transition_batch(
        observation=observation, action=drawn.action, reward=noise, next_observation=following, terminated=other > 2.0
    )
