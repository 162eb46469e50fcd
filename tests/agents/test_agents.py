"""What all agents share: spec, determinism, saving, gradients into an encoder; and what sets SAC and TD3 apart."""

import copy
import inspect
import io

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from trade_agent.agents.base import adam_step, clip_gradients, make_adam, td_target
from trade_agent.agents.builders import AGENT_BUILDERS, agent_from_spec
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import ConfigError
from trade_agent.training.models import agent_spec

NAMES = sorted(AGENT_BUILDERS)


def make(name, **changes):
    torch.manual_seed(0)
    return AGENT_BUILDERS[name](**({"observation_dim": 5, "action_dim": 2, "hidden_dims": (16, 16)} | changes))


@pytest.fixture
def batches(transitions):
    """Batches for any agent: transitions plus what PPO reads."""

    def make_batch(seed, observation=None):
        batch = transitions(seed=seed)
        generator = torch.Generator().manual_seed(seed)
        batch["raw"] = batch["action"].atanh()
        for key in ("log_prob", "advantage", "value_target"):
            batch[key] = torch.randn(32, generator=generator)
        if observation is not None:
            batch["observation"] = observation(batch["observation"])
        return batch

    return make_batch


def train(agent, batches, first, last):
    torch.manual_seed(first)
    for seed in range(first, last):
        metrics = agent.update(batches(seed))
    return metrics


@pytest.mark.parametrize("name", NAMES)
def test_spec_rebuilds_the_agent(name):
    agent = make(name, gamma=0.9, layer_norm=True)
    spec = agent.spec()
    arguments = set(inspect.signature(AGENT_BUILDERS[name].__init__).parameters) - {"self", "device"}
    assert set(spec) == arguments | {"name"}
    assert all(isinstance(value, str | int | float | bool | list | None) for value in spec.values())
    other = agent_from_spec(spec)
    assert other.spec() == spec
    other.load_state_dict(agent.state_dict())
    observation = torch.randn(3, 5)
    assert_close(other.act(observation, deterministic=True).action, agent.act(observation, deterministic=True).action)


@pytest.mark.parametrize("name", NAMES)
def test_a_constructor_has_the_defaults_of_the_config(name):
    model = load_config(compose_config(["stage=rl", f"model={name}"])).model
    configured = agent_spec(model, observation_dim=5, action_dim=2)
    agent = AGENT_BUILDERS[name](observation_dim=5, action_dim=2)
    assert {key: agent.spec()[key] for key in configured} == configured


def test_a_spec_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"agent 'dqn' is unknown; choose one of ppo, sac, td3"):
        agent_from_spec({"name": "dqn"})
    with pytest.raises(ConfigError, match=r"spec of agent 'sac' does not fit: .*gama"):
        agent_from_spec({"name": "sac", "observation_dim": 1, "action_dim": 1, "gama": 0.9})


@pytest.mark.parametrize("name", NAMES)
def test_actions_have_their_shapes_and_bounds(name):
    agent = make(name)
    act = agent.act(torch.randn(64, 5) * 100.0, deterministic=False)
    assert (act.action.shape, act.raw.shape, act.log_prob.shape) == ((64, 2), (64, 2), (64,))
    assert act.action.abs().max() <= 1.0
    observation = torch.randn(4, 5)
    first, second = (agent.act(observation, deterministic=True).action for _ in range(2))
    assert torch.equal(first, second)
    first, second = (agent.act(observation, deterministic=False).action for _ in range(2))
    assert not torch.equal(first, second)
    assert not first.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_after_updates(name, batches):
    agents = [make(name), make(name)]
    for agent in agents:
        train(agent, batches, 0, 6)
    for left, right in zip(*(agent.state_dict().values() for agent in agents), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_agent_goes_on_alike(name, batches):
    agent = make(name)
    train(agent, batches, 0, 3)
    file = io.BytesIO()
    torch.save({"weights": agent.state_dict(), "optimizer": agent.optimizer_state()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    other = agent_from_spec(agent.spec())
    other.load_state_dict(stored["weights"])
    other.load_optimizer_state(stored["optimizer"])
    metrics = [train(each, batches, 3, 6) for each in (agent, other)]
    for left, right in zip(agent.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    for key, value in metrics[0].items():
        assert torch.equal(value, metrics[1][key])


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_detached_scalars(name, batches):
    metrics = make(name).update(batches(0))
    own = {"ppo": {"entropy", "approx_kl"}, "sac": {"entropy", "q_spread"}, "td3": {"q_spread"}}
    assert {"loss_actor", "loss_critic", "grad_norm", *own[name]} <= set(metrics)
    for value in metrics.values():
        assert value.ndim == 0
        assert not value.requires_grad
        assert value.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_extra_loss_reach_the_encoder(name, batches):
    torch.manual_seed(1)
    encoder = nn.Linear(5, 5)
    agent = make(name)
    agent.update(batches(0, encoder))
    from_agent = encoder.weight.grad.clone()
    assert from_agent.abs().sum() > 0
    encoder.zero_grad()

    agent = make(name)
    torch.manual_seed(0)
    agent.backward(agent.prepare(batches(0, encoder)), extra_loss=3.0 * encoder.weight.sum())
    agent_again = make(name)
    with_extra = encoder.weight.grad.clone()
    encoder.zero_grad()
    torch.manual_seed(0)
    agent_again.update(batches(0, encoder))
    assert_close(with_extra - encoder.weight.grad, torch.full((5, 5), 3.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("agent_class", [SAC, TD3])
def test_the_actor_sends_nothing_into_the_encoder(agent_class, batches):
    encoder = nn.Linear(5, 5)
    agent = make(agent_class.name)
    batch = batches(0, encoder)
    loss = agent.losses(agent.prepare(batch)).actor if agent_class is SAC else agent.actor_loss(batch)
    loss.backward()
    assert encoder.weight.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_hook_sees_the_gradients_before_the_step(name, batches):
    agent = make(name)
    before = copy.deepcopy(agent.state_dict())

    def zero(parameters):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    agent.gradient_hook = zero
    metrics = agent.update(batches(0))
    assert metrics["grad_norm"] == 0.0
    for left, right in zip(before.values(), agent.state_dict().values(), strict=True):
        assert_close(left, right, atol=1e-8, rtol=1e-6)


def test_gradient_clipping():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, None).item() == 5.0
    assert parameters[1].grad.item() == 4.0
    assert clip_gradients(parameters, 0.5).item() == 5.0
    assert_close(parameters[0].grad, torch.tensor([0.3, 0.0]))
    assert_close(parameters[1].grad, torch.tensor([0.4]))
    clip_gradients(parameters, 0.6)  # a norm of 0.5 is within it and not made larger
    assert_close(parameters[1].grad, torch.tensor([0.4]))


def test_only_termination_cuts_the_target():
    target = td_target(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([10.0, 10.0]), 0.9)
    assert_close(target, torch.tensor([10.0, 1.0]))


def constant_critics(agent, values):
    """Target critics that say ``values`` whatever they are asked."""
    with torch.no_grad():
        for parameter in agent.target_critic.parameters():
            parameter.zero_()
        agent.target_critic.biases[-1].copy_(torch.tensor(values).view(2, 1, 1))


@pytest.mark.parametrize("values", [(3.0, 7.0), (7.0, 3.0)])
def test_target_takes_the_smaller_of_the_twins(values, batches):
    batch = batches(0)
    alive = ~batch["next", "terminated"].squeeze(1)
    reward = batch["next", "reward"].squeeze(1)
    for name in ("td3", "sac"):
        agent = make(name, gamma=0.5, **({"initial_alpha": 1e-12} if name == "sac" else {}))
        constant_critics(agent, values)
        assert_close(agent.target(agent.prepare(batch)), reward + 1.5 * alive, atol=1e-5, rtol=0.0)


def test_sac_target_counts_the_entropy(batches):
    batch = batches(0)
    batch["next", "terminated"] = torch.zeros(32, 1, dtype=torch.bool)
    agent = make("sac", gamma=1.0, initial_alpha=2.0)
    constant_critics(agent, (0.0, 0.0))
    torch.manual_seed(5)
    target = agent.target(agent.prepare(batch))
    torch.manual_seed(5)
    log_prob = agent.act(batch["next", "observation"], deterministic=False).log_prob
    assert_close(target, batch["next", "reward"].squeeze(1) - 2.0 * log_prob, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("target_entropy", "direction"), [(-50.0, -1.0), (50.0, 1.0)])
def test_temperature_moves_towards_the_target_entropy(target_entropy, direction, batches):
    """More entropy than wanted: alpha falls; less: it rises."""
    agent = make("sac", target_entropy=target_entropy)
    before = agent.log_alpha.item()
    train(agent, batches, 0, 3)
    assert (agent.log_alpha.item() - before) * direction > 0


def test_sac_default_target_entropy_is_minus_the_action_dimension():
    assert make("sac").target_entropy == -2.0
    assert make("sac", action_dim=7).target_entropy == -7.0


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_the_discount_counts_the_steps_of_a_transition(name, batches):
    batch = batches(0)
    batch["next", "terminated"] = torch.zeros(32, 1, dtype=torch.bool)
    batch["steps_to_next_obs"] = torch.tensor([1, 2, 3, 1] * 8).unsqueeze(1)
    agent = make(name, gamma=0.5, **({"initial_alpha": 1e-12} if name == "sac" else {}))
    constant_critics(agent, (8.0, 8.0))
    bootstrapped = agent.target(agent.prepare(batch)) - batch["next", "reward"].squeeze(1)
    assert_close(bootstrapped, torch.tensor([4.0, 2.0, 1.0, 4.0] * 8), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_layer_norm_is_of_the_critics_alone(name):
    plain, normed = make(name), make(name, layer_norm=True)
    more = set(normed.state_dict()) - set(plain.state_dict())
    assert {key.split(".")[0] for key in more} == ({"critic"} if name == "ppo" else {"critic", "target_critic"})
    actors = [agent.actor if name == "td3" else agent.policy for agent in (plain, normed)]
    assert torch.equal(weights(actors[0]), weights(actors[1]))


def test_ppo_starts_with_the_stated_deviation():
    agent = make("ppo", initial_log_std=-1.0)
    raw = agent.act(torch.zeros(50_000, 5), deterministic=False).raw
    assert_close(raw.std(0), torch.full((2,), 0.36788), atol=0.005, rtol=0.0)


def test_activations_are_those_that_were_asked_for():
    for name in NAMES:
        kinds = {type(module) for module in make(name, activation="elu").modules()}
        assert nn.ELU in kinds
        assert nn.ReLU not in kinds


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_td3_delays_actor_and_targets(batches):
    agent = make("td3", policy_delay=3)
    moved = []
    for seed in range(6):
        parts = (agent.critic, agent.actor, agent.target_actor, agent.target_critic)
        before = [weights(part) for part in parts]
        agent.update(batches(seed))
        moved.append([not torch.equal(old, weights(part)) for old, part in zip(before, parts, strict=True)])
    quiet, loud = [True, False, False, False], [True] * 4
    assert moved == [quiet, quiet, loud, quiet, quiet, loud]


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_the_targets_follow_by_tau(name, batches):
    agent = make(name, tau=0.25, **({"policy_delay": 1} if name == "td3" else {}))
    pairs = [(agent.critic, agent.target_critic)] + ([(agent.actor, agent.target_actor)] if name == "td3" else [])
    agent.update(batches(0))
    before = [weights(target) for _, target in pairs]
    agent.update(batches(1))
    for old, (online, target) in zip(before, pairs, strict=True):
        assert_close(weights(target), 0.75 * old + 0.25 * weights(online), atol=1e-7, rtol=1e-6)
        assert (weights(target) - old).abs().max() > 1e-5


def test_td3_target_noise_is_clipped_and_smooths(batches):
    batch = batches(0).expand(2000, 32).reshape(-1)
    agent = make("td3", gamma=1.0, target_noise=10.0, target_noise_clip=0.5)
    with torch.no_grad():
        # critics that return the first action dimension; a target actor that always says 0.3
        for critic in (agent.target_critic,):
            for parameter in critic.parameters():
                parameter.zero_()
            critic.weights[0][:, 5, 0], critic.weights[0][:, 5, 1] = 1.0, -1.0
            critic.weights[1][:, 0, 0], critic.weights[1][:, 1, 1] = 1.0, 1.0
            critic.weights[2][:, 0, 0], critic.weights[2][:, 1, 0] = 1.0, -1.0
        for parameter in agent.target_actor.parameters():
            parameter.zero_()
        agent.target_actor[-2].bias.fill_(torch.tensor(0.3).atanh())
    batch["next", "terminated"] = torch.zeros(len(batch), 1, dtype=torch.bool)
    seen = agent.target(agent.prepare(batch)) - batch["next", "reward"].squeeze(1)
    assert_close(seen.min(), torch.tensor(-0.2), atol=1e-5, rtol=0.0)  # 0.3 - 0.5
    assert_close(seen.max(), torch.tensor(0.8), atol=1e-5, rtol=0.0)
    agent.target_noise = 0.2
    assert_close(
        (agent.target(agent.prepare(batch)) - batch["next", "reward"].squeeze(1)).std(),
        torch.tensor(0.2),
        atol=0.01,
        rtol=0,
    )
    agent.target_actor[-2].bias.data.fill_(10.0)  # the action itself stays within [-1, 1]
    assert (agent.target(agent.prepare(batch)) - batch["next", "reward"].squeeze(1)).max() <= 1.0 + 1e-6


def test_td3_explores_by_the_stated_noise():
    agent = make("td3", exploration_noise=0.1)
    observation = torch.zeros(20_000, 5)
    noise = agent.act(observation, deterministic=False).action - agent.act(observation, deterministic=True).action
    assert_close(noise.std(), torch.tensor(0.1), atol=0.005, rtol=0.0)


def test_ppo_clip_stops_the_gradient_of_a_row_that_has_gone_far_enough():
    agent = make("ppo", initial_log_std=-1.0)
    observation = torch.randn(2, 5)
    act = agent.act(observation, deterministic=False)
    fields = {"observation": observation, "raw": act.raw, "value_target": torch.zeros(2)}
    # ratio e: a good action is already more likely, a bad one already worse than the clip allows
    gained = {"log_prob": act.log_prob - torch.tensor([1.0, -1.0]), "advantage": torch.tensor([1.0, -1.0])}
    agent.value_coefficient = 0.0
    total, metrics = agent.objective(agent.prepare(TensorDict(fields | gained, batch_size=[2])))
    total.backward()
    assert metrics["clip_fraction"] == 1.0
    # Of log ratios 1 and -1: the mean of e - 1 - 1 and 1/e - 1 + 1.
    assert_close(metrics["approx_kl"], torch.tensor(0.543081), atol=1e-5, rtol=0.0)
    assert not any(parameter.grad.any() for parameter in agent.policy.parameters())
    lost = {"log_prob": act.log_prob + torch.tensor([1.0, -1.0]), "advantage": torch.tensor([1.0, -1.0])}
    agent.objective(agent.prepare(TensorDict(fields | lost, batch_size=[2])))[0].backward()
    assert all(parameter.grad.any() for parameter in agent.policy.parameters())


def test_ppo_start_is_nearly_the_same_action_everywhere():
    agent = make("ppo")
    assert agent.act(torch.randn(100, 5), deterministic=True).action.abs().max() < 0.1
    assert agent.optimizer.defaults["eps"] == 1e-5


@pytest.mark.parametrize("policy", ["gaussian", "beta", "categorical"])
def test_networks_of_ppo_start_orthogonal_with_the_gain_of_their_place(policy):
    agent = make("ppo", hidden_dims=(32, 16), policy=policy, actions=[-1.0, 0.0, 1.0])
    for network, output_gain in ((agent.policy, 0.01), (agent.critic, 1.0)):
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        for layer, gain in zip(layers, (2.0**0.5, 2.0**0.5, output_gain), strict=True):
            weight = layer.weight.detach()
            rows, columns = weight.shape
            product = weight @ weight.T if rows <= columns else weight.T @ weight
            assert_close(product, gain**2 * torch.eye(min(rows, columns)), atol=1e-5 * gain**2, rtol=0.0)
            assert not layer.bias.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name, batches):
    agent = make(name, device="cuda")
    batch = batches(0).to("cuda")
    agent.update(batch)  # the first call creates the optimizer state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.act(batch["observation"], deterministic=False)
        agent.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("device", "on_device"), [("cpu", False), ("cpu", True), ("mps", False)])
def test_a_step_of_adam_is_that_of_pytorch(device, on_device):
    """Two rates, one of them in a tensor as on a GPU; a parameter without a gradient in every second update; and an
    optimizer that goes on from a stored state."""

    def make():
        generator = torch.Generator().manual_seed(0)
        first, second, third = (nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(3))
        groups = [{"params": [first, second], "lr": 1e-2}, {"params": [third], "lr": 3e-3}]
        optimizer = make_adam(groups, eps=1e-5, device=torch.device(device))  # one of mps is not fused
        if on_device:
            optimizer.param_groups[1]["lr"] = torch.tensor(3e-3)
        return [first, second, third], optimizer

    (ours, optimizer), (theirs, reference) = make(), make()
    for update in range(8):
        if update == 5:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = (other.detach() * (update + 1)).sin()
            mine.grad = other.grad.clone()
        if update % 2 == 0:
            ours[1].grad = theirs[1].grad = None
        adam_step(optimizer)
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        assert_close(optimizer.state[mine], reference.state[other], rtol=0, atol=0)
