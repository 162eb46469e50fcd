import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchrl.objectives.value.functional import generalized_advantage_estimate

from trade_agent.agents.ppo import PPO
from trade_agent.agents.rollout import RolloutBuffer, gae


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def run(terminated, truncated):
    return gae(
        reward=column(1.0, 2.0, 3.0),
        value=column(0.5, 1.0, 1.5),
        next_value=column(1.0, 1.5, 4.0),
        terminated=column(*terminated, dtype=torch.bool),
        truncated=column(*truncated, dtype=torch.bool),
        gamma=0.5,
        gae_lambda=0.5,
    )


def test_gae_by_hand():
    # delta = r + 0.5 V' - V = (1, 1.75, 3.5); A_2 = 3.5, A_1 = 1.75 + 0.25 * 3.5, A_0 = 1 + 0.25 * A_1
    advantage, target = run((0, 0, 0), (0, 0, 0))
    assert_close(advantage, column(1.65625, 2.625, 3.5))
    assert_close(target, column(2.15625, 3.625, 5.0))


def test_termination_cuts_the_bootstrap_and_the_sum():
    # delta_1 = 2 - 1 = 1: V' is gone; A_1 = 1, A_0 = 1 + 0.25
    advantage, _ = run((0, 1, 0), (0, 0, 0))
    assert_close(advantage, column(1.25, 1.0, 3.5))


def test_truncation_keeps_the_bootstrap_and_cuts_the_sum():
    # delta_1 = 1.75 as before, nothing of A_2; A_0 = 1 + 0.25 * 1.75
    advantage, _ = run((0, 0, 0), (0, 1, 0))
    assert_close(advantage, column(1.4375, 1.75, 3.5))


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 40), envs=st.integers(1, 3), seed=st.integers(0, 1000), gae_lambda=st.floats(0.0, 1.0))
def test_gae_equals_torchrl(steps, envs, seed, gae_lambda):
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, steps, envs, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, steps, envs, generator=generator) < 0.15
    ours = gae(
        reward=reward,
        value=value,
        next_value=next_value,
        terminated=terminated,
        truncated=truncated,
        gamma=0.97,
        gae_lambda=gae_lambda,
    )
    factors = torch.tensor((0.97, gae_lambda), dtype=torch.float64)  # plain numbers would become float32 in there
    theirs = generalized_advantage_estimate(
        *factors, value, next_value, reward, terminated | truncated, terminated, time_dim=-2
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, atol=1e-10, rtol=1e-10)


def fill(buffer, *, reward=1.0, truncate_at=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps, envs = buffer.num_steps, buffer.num_envs
    for step in range(steps):
        buffer.add(
            t=torch.arange(envs) * 1000 + step,
            private=torch.randn(envs, 2, generator=generator),
            raw=torch.randn(envs, 1, generator=generator),
            log_prob=torch.randn(envs, generator=generator),
            reward=torch.full((envs,), reward),
            terminated=torch.zeros(envs, dtype=torch.bool),
            truncated=torch.full((envs,), step in truncate_at),
            next_private=torch.randn(envs, 2, generator=generator),
        )


def test_value_of_an_endless_stream_of_ones_despite_truncation():
    """V -> 1 / (1 - gamma) = 10, which fails where a time limit is taken for the end of the world."""
    torch.manual_seed(0)
    agent = PPO(observation_dim=2, action_dim=1, hidden_dims=(16,), gamma=0.9, learning_rate=0.01, max_grad_norm=100.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(90):
        buffer = RolloutBuffer(num_steps=8, num_envs=4, private_dim=2, action_dim=1)
        fill(buffer, truncate_at=(3, 7))
        buffer.finish(
            value=agent.value(buffer.private),
            next_value=agent.value(buffer.next_private),
            gamma=agent.gamma,
            gae_lambda=agent.gae_lambda,
        )
        for batch in buffer.minibatches(16, generator):
            batch["observation"] = batch["private"]
            agent.update(batch)
    assert_close(agent.value(torch.randn(100, 2)).mean(), torch.tensor(10.0), atol=0.5, rtol=0.0)


def test_minibatches_visit_every_row_once_and_keep_rows_together():
    buffer = RolloutBuffer(num_steps=5, num_envs=3, private_dim=2, action_dim=1)
    assert not buffer.full
    fill(buffer)
    assert buffer.full
    buffer.finish(value=torch.zeros(5, 3), next_value=torch.zeros(5, 3), gamma=0.9, gae_lambda=0.8)
    rows = {int(t): (private, adv) for t, private, adv in zip(*flat(buffer), strict=True)}
    batches = list(buffer.minibatches(4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    seen = torch.cat([batch["t"] for batch in batches]).tolist()
    assert sorted(seen) == sorted(rows)
    assert seen != sorted(seen)
    for batch in batches:
        for t, private, advantage in zip(batch["t"], batch["private"], batch["advantage"], strict=True):
            assert_close(private, rows[int(t)][0])
            assert_close(advantage, rows[int(t)][1])


def flat(buffer):
    return buffer.t.flatten(), buffer.private.flatten(0, 1), buffer.advantage.flatten()


@pytest.mark.parametrize(("batch_size", "expected"), [(7, [7, 8]), (15, [15]), (64, [15]), (5, [5, 5, 5])])
def test_no_minibatch_of_one_row(batch_size, expected):
    buffer = RolloutBuffer(num_steps=5, num_envs=3, private_dim=2, action_dim=1)
    fill(buffer)
    assert [len(b) for b in buffer.minibatches(batch_size, torch.Generator().manual_seed(0))] == expected


def test_same_generator_same_order():
    buffer = RolloutBuffer(num_steps=5, num_envs=3, private_dim=2, action_dim=1)
    fill(buffer)
    orders = [torch.cat([b["t"] for b in buffer.minibatches(4, torch.Generator().manual_seed(s))]) for s in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
