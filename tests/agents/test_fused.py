"""Compiled agents, and stacks of them, draw what they draw and learn what they learn without compiling."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close

from trade_agent.agents.base import transition_batch
from trade_agent.agents.copies import agents_from_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]
ROWS = 32  # of each agent
CASES = [
    ({"name": "ppo"}, 1),
    ({"name": "ppo"}, 3),
    ({"name": "ppo", "policy": "beta", "layer_norm": True}, 3),
    ({"name": "ppo", "policy": "categorical", "actions": [-1.0, -0.5, 0.5, 1.0], "entropy_coefficient": 0.01}, 3),
    ({"name": "sac"}, 1),
    ({"name": "sac", "normalise_observation": True, "layer_norm": True}, 3),
    ({"name": "td3", "layer_norm": True}, 1),
    ({"name": "td3", "activation": "tanh"}, 3),
]


@pytest.mark.parametrize(("settings", "copies"), CASES)
def test_compiled_agents_are_the_same(settings, copies):
    torch.manual_seed(1)
    agent = agents_from_spec({"observation_dim": 5, "action_dim": 2, "hidden_dims": [16, 16], **settings}, copies)
    batch = minibatch(agent)
    expected = gradients(agent, batch)
    rollout = act_twice(agent, batch["observation"])
    torch.compiler.reset()
    counters.clear()
    agent.fuse()
    assert_close(act_twice(agent, batch["observation"]), rollout, atol=1e-6, rtol=1e-5)
    for (metrics, grads), (others, like) in zip(gradients(agent, batch), expected, strict=True):
        assert_close(metrics, others, atol=1e-6, rtol=1e-5)
        assert grads.keys() == like.keys()
        for name in like:
            assert_close(grads[name], like[name], atol=1e-6, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] >= 2  # with an encoder and without
    assert not counters["graph_break"]


def minibatch(agent):
    """As any agent reads it, and prepared."""
    rows = ROWS * agent.copies
    observation = torch.randn(rows, 5)
    act = agent.act(observation, deterministic=False)
    return agent.prepare(
        transition_batch(
            observation=observation,
            action=act.action,
            reward=torch.randn(rows),
            next_observation=torch.randn(rows, 5),
            terminated=torch.rand(rows) < 0.3,
            steps=torch.randint(1, 4, (rows,)),
            raw=act.raw,
            log_prob=act.log_prob + 0.2 * torch.randn(rows),
            advantage=torch.randn(rows),
            value_target=torch.randn(rows),
        )
    )


def act_twice(agent, observation):
    """Drawn and deterministic, and the number that is drawn next: as many must have been drawn before."""
    torch.manual_seed(2)
    drawn, following = agent.act(observation, deterministic=False), torch.rand(1)
    return [*drawn, following, agent.act(observation, deterministic=True).action]


def gradients(agent, batch):
    """Metrics and gradients of two updates, for TD3's actor has its turn in the second one: of the whole batch; and of
    two parts of it, the observation coming from an encoder that has a loss of its own."""
    encoder = torch.nn.Parameter(torch.eye(5))
    seen = []
    for _ in range(2):
        agent.optimizer.zero_grad()
        metrics = agent.backward(batch)
        seen.append((metrics, gradients_of(agent)))
        agent.optimizer.zero_grad()
        encoder.grad = None
        for part in batch.split(len(batch) // 2):
            part["observation"] = part["observation"] @ encoder
            metrics = agent.backward(part, share=0.5, extra_loss=0.1 * part["observation"].square().mean())
        assert encoder.grad is not None
        seen.append((metrics, gradients_of(agent) | {"encoder": encoder.grad}))
        agent.count()
    return seen


def gradients_of(agent):
    return {name: value.grad.clone() for name, value in agent.named_parameters() if value.grad is not None}
