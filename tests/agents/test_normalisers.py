"""Running statistics: what they are, what they are divided by, and who may move them."""

import pytest
import torch
from torch.testing import assert_close

from trade_agent.agents.builders import AGENT_BUILDERS, agent_from_spec
from trade_agent.agents.normalisers import ObservationNormaliser, RewardNormaliser, RunningMoments

NAMES = sorted(AGENT_BUILDERS)


def make(name, **changes):
    torch.manual_seed(0)
    settings = {"observation_dim": 3, "action_dim": 1, "hidden_dims": (8,)}
    return AGENT_BUILDERS[name](**(settings | {"normalise_observation": True, "normalise_reward": True} | changes))


def test_moments_of_parts_are_those_of_the_whole():
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 5.0 + 2.0
    moments = RunningMoments(3)
    for part in (rows[:1], rows[1:2], rows[2:50], rows[50:]):
        moments.update(part)
    assert_close(moments.mean, rows.double().mean(0))
    assert_close(moments.variance, rows.double().var(0, correction=0))
    assert moments.count == 100


def test_observations_by_hand():
    normaliser = ObservationNormaliser(2, enabled=True)
    assert_close(normaliser(torch.tensor([[3.0, -4.0]])), torch.tensor([[3.0, -4.0]]))  # nothing is known yet
    normaliser.update(torch.tensor([[1.0, 0.0], [3.0, 8.0]]))  # means 2 and 4, deviations 1 and 4
    assert_close(normaliser(torch.tensor([[5.0, 2.0]])), torch.tensor([[3.0, -0.5]]))
    assert_close(normaliser(torch.tensor([[50.0, -900.0]])), torch.tensor([[10.0, -10.0]]))


def test_rewards_by_hand():
    normaliser = RewardNormaliser(0.5, enabled=True)
    # discounted returns 1, then 2 + 0.5 = 2.5, where the episode ends, then 4: mean 2.5, variance (1.5^2 + 1.5^2) / 3
    for reward, done in ((1.0, False), (2.0, True), (4.0, False)):
        normaliser.update(torch.tensor([reward]), torch.tensor([done]))
    assert_close(normaliser.moments.variance, torch.tensor(1.5).double())
    assert_close(normaliser(torch.tensor([-3.0, 1.5])), torch.tensor([-3.0, 1.5]) / 1.5**0.5)


def test_a_normaliser_that_is_off_does_nothing_and_keeps_nothing():
    observation, reward = torch.randn(4, 3), torch.randn(4)
    agent = make("sac", normalise_observation=False, normalise_reward=False)
    agent.observation_normaliser.update(observation)
    agent.reward_normaliser.update(reward, torch.zeros(4, dtype=torch.bool))
    assert agent.observation_normaliser(observation) is observation
    assert agent.reward_normaliser(reward) is reward
    assert not [key for key in agent.state_dict() if "normaliser" in key]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_update_moves_the_statistics(name, transitions):
    agent = make(name)
    agent.observation_normaliser.update(torch.randn(50, 3) * 4.0 + 1.0)
    agent.reward_normaliser.update(torch.randn(50), torch.zeros(50, dtype=torch.bool))
    before = {key: value.clone() for key, value in agent.state_dict().items() if "normaliser" in key}
    assert len(before) == 6
    batch = transitions(observation_dim=3, action_dim=1)
    batch["raw"], batch["log_prob"] = batch["action"], torch.zeros(32)
    batch["advantage"], batch["value_target"] = torch.randn(32), torch.randn(32)
    for deterministic in (True, False):
        agent.act(torch.randn(20, 3) * 100.0, deterministic=deterministic)
    agent.update(batch)
    if name == "ppo":
        agent.value(torch.randn(20, 3))
    assert all(torch.equal(agent.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_reads_normalised_observations_and_takes_them_along(name):
    plain, agent = make(name, normalise_observation=False), make(name)
    agent.observation_normaliser.update(torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))  # mean 2 4 6, deviation 1 2 3
    raw, normal = torch.tensor([[4.0, 2.0, 6.0]]), torch.tensor([[2.0, -1.0, 0.0]])
    wanted = plain.act(normal, deterministic=True).action
    assert_close(agent.act(raw, deterministic=True).action, wanted)
    if name == "ppo":
        assert_close(agent.value(raw), plain.value(normal))
    other = agent_from_spec(agent.spec())
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.act(raw, deterministic=True).action, agent.act(raw, deterministic=True).action)


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_targets_and_losses_of_normalised_batches(name, transitions):
    """An agent that normalises learns from a batch what a plain one learns from the batch normalised by hand."""
    plain, agent = make(name, normalise_observation=False, normalise_reward=False), make(name)
    agent.observation_normaliser.update(torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))
    agent.reward_normaliser.update(torch.tensor([0.0, 8.0]), torch.tensor([False, False]))  # deviation 4
    batch = transitions(observation_dim=3, action_dim=1)
    by_hand = batch.clone()
    mean, deviation = torch.tensor([2.0, 4.0, 6.0]), torch.tensor([1.0, 2.0, 3.0])
    by_hand["observation"] = (batch["observation"] - mean) / deviation
    by_hand["next", "observation"] = (batch["next", "observation"] - mean) / deviation
    by_hand["next", "reward"] = batch["next", "reward"] / 4.0
    torch.manual_seed(3)
    metrics = [agent.update(batch) for _ in range(4)]
    torch.manual_seed(3)
    expected = [plain.update(by_hand) for _ in range(4)]
    for key, value in metrics[-1].items():
        assert_close(value, expected[-1][key], atol=1e-5, rtol=1e-4)
