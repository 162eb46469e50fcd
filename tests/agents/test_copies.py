"""A stack of agents learns what its agents learn by themselves, and none of them sees anything of another one."""

import copy
import io

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from trade_agent.agents.base import transition_batch
from trade_agent.agents.builders import agent_from_spec
from trade_agent.agents.copies import agents_from_spec, members_of, side_by_side
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.agents.sac import SAC

COPIES, ROWS = 3, 16
NAMES = ["ppo", "sac", "td3"]
CASES = [
    ("ppo", {"max_grad_norm": 0.05}),
    ("ppo", {"policy": "beta", "entropy_coefficient": 0.01, "layer_norm": True}),
    ("ppo", {"policy": "categorical", "actions": [-1.0, 0.0, 1.0], "entropy_coefficient": 0.01}),
    ("sac", {"max_grad_norm": 0.1}),
    ("sac", {"max_grad_norm": None, "layer_norm": True}),
    ("td3", {"max_grad_norm": 0.1}),
    ("td3", {"policy_delay": 1, "normalise_observation": True, "normalise_reward": True}),
]


def spec(name, **changes):
    return {"name": name, "observation_dim": 5, "action_dim": 2, "hidden_dims": [16, 16], **changes}


def in_float64(name, **changes):
    torch.manual_seed(0)
    return [agent_from_spec(spec(name, **changes)).double() for _ in range(COPIES)]


def stacked(name, **changes):
    torch.manual_seed(0)
    return agents_from_spec(spec(name, **changes), COPIES)


def batch_for(stack, seed, dtype=torch.float32):
    """A minibatch as any agent reads it, prepared; no two rows are alike."""
    torch.manual_seed(seed)
    rows = ROWS * COPIES
    observation = torch.randn(rows, 5, dtype=dtype)
    act = stack.act(observation, deterministic=False)
    batch = transition_batch(
        observation=observation,
        action=act.action,
        reward=torch.randn(rows, dtype=dtype),
        next_observation=torch.randn(rows, 5, dtype=dtype),
        terminated=torch.rand(rows) < 0.3,
        steps=torch.randint(1, 4, (rows,)),
    )
    batch["raw"], batch["log_prob"] = act.raw, act.log_prob + 0.3 * torch.randn(rows, dtype=dtype)
    for name in ("advantage", "value_target"):
        batch[name] = torch.randn(rows, dtype=dtype)
    return stack.prepare(batch)


def learn(agent, batch):
    agent.optimizer.zero_grad(set_to_none=True)
    metrics = agent.step(agent.backward(batch))
    agent.count()
    return metrics


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_stack_learns_what_its_agents_learn_alone(name, settings):
    agents = in_float64(name, **settings)
    alone = copy.deepcopy(agents)
    stack = side_by_side(agents)
    limit = settings.get("max_grad_norm")
    for seed in range(5):  # TD3: updates with and without the actor
        batch = batch_for(stack, seed, torch.float64)
        expected = [learn(agent, batch[index::COPIES]) for index, agent in enumerate(alone)]
        norms = [float(metrics["grad_norm"]) for metrics in expected]
        assert limit is None or min(norms) > limit  # each is clipped, by its own norm
        metrics = learn(stack, batch)
        assert metrics.keys() == expected[0].keys()
        for key, value in metrics.items():
            assert_close(
                value.double(), torch.stack([each[key] for each in expected]).double().mean(), rtol=1e-5, atol=0.0
            )
    before = in_float64(name, **settings)
    for key, value in stack.state_dict().items():
        assert_close(value, torch.stack([agent.state_dict()[key] for agent in alone]), rtol=0.0, atol=1e-9)
        if value.is_floating_point() and "normaliser" not in key:
            assert not torch.equal(value, torch.stack([agent.state_dict()[key] for agent in before]))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_taken_over_a_minibatch_is_taken_over_the_rows_of_one(name):
    stack = stacked(name)
    batch = batch_for(stack, 1)
    drawn = {"ppo": ["noise"], "sac": ["noise_target", "noise_actor"], "td3": ["noise_target"]}[name]
    for key in drawn:
        assert len(set(batch[key].flatten().tolist())) == batch[key].numel()
    if name == "ppo":
        for index in range(COPIES):
            own = batch["advantage"][index::COPIES]
            assert_close(batch["standard_advantage"][index::COPIES], (own - own.mean()) / own.std())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_nothing_of_one_reaches_another(name, settings):
    """Two stacks that differ only in the rows of one agent: the others stay equal, bit for bit."""
    one, other = stacked(name, **settings), stacked(name, **settings)
    for seed in range(4):
        batch = batch_for(one, seed)
        disturbed = batch.clone()
        own = torch.arange(len(batch)) % COPIES == 1
        for key in ("observation", "advantage", "value_target"):
            disturbed[key][own] = disturbed[key][own] * 7.0 + 1.0
        disturbed["next", "reward"][own] -= 50.0
        learn(one, batch)
        learn(other, disturbed)
    for key, value in one.state_dict().items():
        seen = other.state_dict()[key]
        assert torch.equal(value[[0, 2]], seen[[0, 2]]), key
        if "normaliser" not in key:
            assert not torch.equal(value[1], seen[1]), key


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_an_action_is_that_of_the_agent_whose_row_it_is(name, settings):
    stack = stacked(name, **settings)
    observation = torch.randn(ROWS * COPIES, 5)
    act = stack.act(observation, deterministic=True)
    for index, agent in enumerate(members_of(stack)):
        own = agent.act(observation[index::COPIES], deterministic=True)
        for seen, expected in zip(act, own, strict=True):
            assert_close(seen[index::COPIES], expected)
    if name == "ppo":
        expected = [agent.value(observation[index::COPIES]) for index, agent in enumerate(members_of(stack))]
        assert_close(stack.value(observation), torch.stack(expected, dim=1).flatten())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_each_has_weights_and_noise_of_its_own(name, settings):
    stack = stacked(name, **settings)
    first, *others = members_of(stack)
    observation = torch.randn(ROWS, 5).repeat_interleave(COPIES, 0)
    for agent in others:
        assert any(not torch.equal(value, first.state_dict()[key]) for key, value in agent.state_dict().items())
        agent.load_state_dict(first.state_dict())
    alike = stack.act(observation, deterministic=True).action
    drawn = stack.act(observation, deterministic=False).action
    for index in range(1, COPIES):
        assert torch.equal(alike[0::COPIES], alike[index::COPIES])
        assert not torch.equal(drawn[0::COPIES], drawn[index::COPIES])


@pytest.mark.parametrize("name", NAMES)
def test_members_are_what_the_stack_is(name):
    stack = stacked(name, normalise_observation=True)
    first = agent_from_spec(spec(name, normalise_observation=True))
    stack.observation_normaliser.update(torch.randn(12, 5))
    learn(stack, batch_for(stack, 0))
    for index, member in enumerate(members_of(stack)):
        assert member.spec() == stack.spec()
        for key, value in member.state_dict().items():
            assert torch.equal(value, stack.state_dict()[key][index])
        first.load_state_dict(member.state_dict())  # an ordinary agent
    assert members_of(first) == [first]


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_stack_goes_on_alike(name):
    stack = stacked(name)
    for seed in range(3):
        learn(stack, batch_for(stack, seed))
    file = io.BytesIO()
    torch.save({"weights": stack.state_dict(), "optimizer": stack.optimizer_state()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    other = agents_from_spec(spec(name), COPIES)
    other.load_state_dict(stored["weights"])
    other.load_optimizer_state(stored["optimizer"])
    for seed in range(3, 6):
        batch = batch_for(stack, seed)
        learn(stack, batch.clone())
        learn(other, batch)
    for left, right in zip(stack.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_parts_of_a_minibatch_add_up_to_it():
    whole, parts = (side_by_side(in_float64("sac")) for _ in range(2))
    batch = batch_for(whole, 0, torch.float64)
    expected = whole.backward(batch)
    shares = [parts.backward(part, share=len(part) / len(batch)) for part in batch.split(5 * COPIES)]
    for key, value in expected.items():
        assert_close(sum(share[key] for share in shares), value)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert_close(one.grad, other.grad)


def test_statistics_are_those_of_ones_own_rows():
    settings = {"normalise_observation": True, "normalise_reward": True}
    stack, alone = stacked("sac", **settings), [SAC(observation_dim=5, action_dim=2, **settings) for _ in range(COPIES)]
    for seed in range(4):
        torch.manual_seed(seed)
        observation = torch.randn(4 * COPIES, 5) * torch.arange(1, COPIES + 1).repeat(4).unsqueeze(1)
        reward, done = observation[:, 0].clone(), torch.rand(4 * COPIES) < 0.3
        stack.observation_normaliser.update(observation)
        stack.reward_normaliser.update(reward, done)
        for index, agent in enumerate(alone):
            agent.observation_normaliser.update(observation[index::COPIES])
            agent.reward_normaliser.update(reward[index::COPIES], done[index::COPIES])
    found = {key: value for key, value in stack.state_dict().items() if "normaliser" in key}
    assert len(found) == 6
    for key, value in found.items():
        assert_close(value, torch.stack([agent.state_dict()[key] for agent in alone]))
    rollout = torch.randn(7, 4 * COPIES)  # of a rollout, steps in front
    for index, agent in enumerate(alone):
        expected = agent.reward_normaliser(rollout[:, index::COPIES])
        assert_close(stack.reward_normaliser(rollout)[:, index::COPIES], expected)


def numbered(first, count):
    t = torch.arange(first, first + count)
    row = torch.zeros(count, 1)
    return Transitions(t, row, row, torch.zeros(count), t % 5 == 0, row)


@pytest.mark.parametrize("extends", [1, 3, 9])
def test_a_replayed_row_is_the_agents_own(extends):
    """Two environments for each of three agents; the last case has wrapped around in the midst of a step."""
    buffer = ReplayBuffer(capacity=15, private_dim=1, action_dim=1, copies=COPIES)
    for index in range(extends):
        buffer.extend(numbered(6 * index, 6))
    sample = buffer.sample(400, torch.Generator().manual_seed(0))
    kept = range(max(6 * extends - 45, 0), 6 * extends)
    for index in range(COPIES):
        seen = sample.t[index::COPIES].tolist()
        assert len(seen) == 400
        assert set(seen) == {t for t in kept if t % COPIES == index}


def test_minibatches_of_a_rollout_hold_the_agents_own_rows():
    steps, envs = 5, 2 * COPIES
    buffer = RolloutBuffer(num_steps=steps, num_envs=envs, private_dim=1, action_dim=1, copies=COPIES)
    for step in range(steps):
        zeros = torch.zeros(envs)
        fields = {"private": zeros[:, None], "next_private": zeros[:, None], "raw": zeros[:, None], "log_prob": zeros}
        flags = {"terminated": zeros.bool(), "truncated": zeros.bool()}
        buffer.add(t=torch.arange(envs) + 100 * step, reward=zeros, **fields, **flags)
    batches = list(buffer.minibatches(3, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [3 * COPIES, 3 * COPIES, 4 * COPIES]
    seen = torch.cat([batch["t"] for batch in batches])
    assert sorted(seen.tolist()) == sorted(buffer.t.flatten().tolist())
    assert ((seen % 100) % COPIES == torch.arange(len(seen)) % COPIES).all()
    orders = [(seen[index::COPIES] - index).tolist() for index in range(COPIES)]
    assert orders[0] != orders[1]


def test_the_rows_of_a_batch_are_left_as_they_are():
    stack = stacked("td3")
    batch = TensorDict({"action": torch.randn(6, 2), "t": torch.arange(6)}, batch_size=[6])
    prepared = stack.prepare(batch.clone())
    assert prepared.keys() == {"action", "t", "noise_target"}
    assert torch.equal(prepared["t"], batch["t"])


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_drawn_whenever_a_minibatch_is_prepared(name):
    stack = stacked(name)
    batch = batch_for(stack, 1)
    first = batch.clone()
    second = stack.prepare(batch)
    changed = {"ppo": {"noise"}, "sac": {"noise_target", "noise_actor"}, "td3": {"noise_target"}}[name]
    assert second.batch_size == first.batch_size
    for key in first.keys(True, True):
        assert torch.equal(second[key], first[key]) is (key not in changed), key


@pytest.mark.parametrize("values", [{2: torch.nan}, {2: torch.inf}, {2: -torch.inf}, {1: torch.inf, 2: -torch.inf}])
@pytest.mark.parametrize("name", NAMES)
def test_one_agent_whose_loss_is_not_finite_is_seen_in_the_metrics_for_good(name, values):
    """In that update and in those that follow: its weights are not finite any more. Those of the others are."""
    stack = stacked(name)
    batch = batch_for(stack, 0)
    for agent, value in values.items():
        batch["value_target"][COPIES + agent] = batch["next", "reward"][COPIES + agent] = value
    metrics = learn(stack, batch)
    for key in ("loss_critic", "grad_norm"):
        assert not metrics[key].isfinite(), key
    assert not learn(stack, batch_for(stack, 1))["loss_critic"].isfinite()
    for index, agent in enumerate(members_of(stack)):
        assert all(value.isfinite().all() for value in agent.parameters()) is (index not in values)
