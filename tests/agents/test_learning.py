"""Each agent solves a one-step task: the best action is a known function of the observation."""

import pytest
import torch

from trade_agent.agents.base import transition_batch
from trade_agent.agents.ppo import PPO
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3


def reward_of(private, action):
    """Best action 0.6 tanh(2 x) of the first observation x; staying at 0 earns about -0.2, the best 0."""
    return -(action[:, 0] - 0.6 * (2.0 * private[:, 0]).tanh()).square()


def mean_reward(agent):
    observation = torch.randn(500, 2, generator=torch.Generator().manual_seed(99))
    return reward_of(observation, agent.act(observation, deterministic=True).action).mean().item()


@pytest.mark.parametrize("agent_class", [SAC, TD3])
def test_off_policy_agents_solve_a_one_step_task(agent_class):
    torch.manual_seed(0)
    settings = {"target_entropy": -3.0, "initial_alpha": 0.1} if agent_class is SAC else {}
    agent = agent_class(
        observation_dim=2,
        action_dim=1,
        hidden_dims=(32, 32),
        actor_learning_rate=1e-2,
        critic_learning_rate=1e-2,
        **settings,
    )
    assert mean_reward(agent) < -0.15
    generator = torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(capacity=5000, private_dim=2, action_dim=1)
    for step in range(250):
        private = torch.randn(32, 2)
        action = torch.rand(32, 1) * 2 - 1 if step < 20 else agent.act(private, deterministic=False).action
        ended = torch.ones(32, dtype=torch.bool)
        reward = reward_of(private, action)
        buffer.extend(Transitions(torch.zeros(32), private, action, reward, ended, torch.randn(32, 2)))
        sample = buffer.sample(64, generator)
        batch = transition_batch(
            observation=sample.private,
            action=sample.action,
            reward=sample.reward,
            next_observation=sample.next_private,
            terminated=sample.terminated,
        )
        agent.update(batch)
    assert mean_reward(agent) > -0.02


@pytest.mark.parametrize("policy", ["gaussian", "beta", "categorical"])
def test_ppo_solves_a_one_step_task(policy):
    torch.manual_seed(0)
    agent = PPO(
        observation_dim=2,
        action_dim=1,
        hidden_dims=(32, 32),
        policy=policy,
        actions=[-0.6, -0.3, 0.0, 0.3, 0.6],
        learning_rate=3e-3,
    )
    assert mean_reward(agent) < -0.15
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        buffer = RolloutBuffer(num_steps=4, num_envs=64, private_dim=2, action_dim=1)
        for _ in range(4):
            private = torch.randn(64, 2)
            act = agent.act(private, deterministic=False)
            buffer.add(
                t=torch.zeros(64),
                private=private,
                raw=act.raw,
                log_prob=act.log_prob,
                reward=reward_of(private, act.action),
                terminated=torch.ones(64, dtype=torch.bool),
                truncated=torch.zeros(64, dtype=torch.bool),
                next_private=private,
            )
        buffer.finish(
            value=agent.value(buffer.private),
            next_value=agent.value(buffer.next_private),
            gamma=agent.gamma,
            gae_lambda=agent.gae_lambda,
        )
        for _ in range(4):
            for batch in buffer.minibatches(64, generator):
                batch["observation"] = batch["private"]
                agent.update(batch)
    assert mean_reward(agent) > -0.02


def test_critic_of_an_endless_stream_of_ones():
    """Q -> 1 / (1 - gamma) = 5 where nothing ever terminates."""
    torch.manual_seed(0)
    agent = TD3(observation_dim=2, action_dim=1, hidden_dims=(16,), critic_learning_rate=0.01, gamma=0.8, tau=0.5)
    never = torch.zeros(32, dtype=torch.bool)
    for _ in range(400):
        batch = transition_batch(
            observation=torch.randn(32, 2),
            action=torch.rand(32, 1) * 2 - 1,
            reward=torch.ones(32),
            next_observation=torch.randn(32, 2),
            terminated=never,
        )
        metrics = agent.update(batch)
    assert abs(metrics["q_mean"].item() - 5.0) < 0.25
