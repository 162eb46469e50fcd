"""Our losses, gradients and target updates against TorchRL's, on the same weights, batch and noise."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch.testing import assert_close
from torchrl.objectives import SoftUpdate

from trade_agent.agents.base import soft_update
from trade_agent.agents.ppo import PPO
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3
from trade_agent.agents.torchrl_modules import ppo_loss, probabilistic_actor, sac_loss, td3_loss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:.*entropy.*:UserWarning")


def stacked_gradients(agent):
    """Critic gradients in the layout of nn.Linear: weights [2, O, I] and biases [2, O]."""
    weights = [parameter.grad.transpose(1, 2) for parameter in agent.critic.weights]
    return {"weight": weights, "bias": [parameter.grad.squeeze(1) for parameter in agent.critic.biases]}


def assert_critic_gradients(agent, loss):
    ours = stacked_gradients(agent)
    network = loss.qvalue_network_params["module", "network"]
    for kind in ("weight", "bias"):
        theirs = [network[key, kind].grad for key in sorted(network.keys(), key=int)]
        for mine, other in zip(ours[kind], theirs, strict=True):
            assert_close(mine, other, atol=1e-5, rtol=1e-4)


def assert_same_gradients(network, params):
    for name, parameter in network.named_parameters():
        assert_close(parameter.grad, params[tuple(name.split("."))].grad, atol=1e-5, rtol=1e-4)


def perturb(target):
    """Targets that differ from the online networks, so that a mix-up shows."""
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_sac(transitions):
    torch.manual_seed(1)
    agent = SAC(observation_dim=5, action_dim=2, hidden_dims=(32, 32), gamma=0.9, initial_alpha=0.3)
    perturb(agent.target_critic)
    loss = sac_loss(agent)
    batch = transitions()
    torch.manual_seed(7)
    expected = loss(batch.clone())
    torch.manual_seed(7)
    ours = agent.losses(agent.prepare(batch))
    assert_close(ours.critic, expected["loss_qvalue"], atol=1e-5, rtol=1e-5)
    assert_close(ours.actor, expected["loss_actor"], atol=1e-5, rtol=1e-5)
    assert_close(ours.alpha, expected["loss_alpha"], atol=1e-5, rtol=1e-5)
    assert_close(-ours.log_prob.mean(), expected["entropy"], atol=1e-5, rtol=1e-5)

    (ours.critic + ours.actor + ours.alpha).backward()
    (expected["loss_qvalue"] + expected["loss_actor"] + expected["loss_alpha"]).backward()
    assert_critic_gradients(agent, loss)
    assert_same_gradients(agent.policy, loss.actor_network_params["module", "0", "module", "policy"])
    assert_close(agent.log_alpha.grad, loss.log_alpha.grad, atol=1e-5, rtol=1e-5)


def test_td3(transitions):
    torch.manual_seed(1)
    agent = TD3(observation_dim=5, action_dim=2, hidden_dims=(32, 32), gamma=0.9)
    perturb(agent.target_critic)
    perturb(agent.target_actor)
    loss = td3_loss(agent)
    batch = transitions()
    torch.manual_seed(7)
    expected = loss(batch.clone())
    torch.manual_seed(7)
    critic, q = agent.critic_loss(agent.prepare(batch))
    actor = agent.actor_loss(batch)
    assert_close(critic, expected["loss_qvalue"], atol=1e-5, rtol=1e-5)
    assert_close(actor, expected["loss_actor"], atol=1e-5, rtol=1e-5)
    assert_close(q, expected["pred_value"], atol=1e-5, rtol=1e-5)
    (critic + actor).backward()
    (expected["loss_qvalue"] + expected["loss_actor"]).backward()
    assert_critic_gradients(agent, loss)
    assert_same_gradients(agent.actor, loss.actor_network_params["module"])


@pytest.mark.parametrize("policy", ["gaussian", "beta", "categorical"])
@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.02])
def test_ppo(entropy_coefficient, policy):
    torch.manual_seed(1)
    agent = PPO(
        observation_dim=5,
        action_dim=2,
        hidden_dims=(16, 16),
        policy=policy,
        actions=[-1.0, -0.5, 0.5, 1.0],
        entropy_coefficient=entropy_coefficient,
    )
    with torch.no_grad():
        for parameter in agent.policy.parameters():  # away from the start, where every observation is treated alike
            parameter.add_(0.3 * torch.randn_like(parameter))
    loss = ppo_loss(agent)
    observation = torch.randn(64, 5)
    act = agent.act(observation, deterministic=False)
    fields = {
        "observation": observation,
        "raw": act.raw,
        "log_prob": act.log_prob + 0.2 * torch.randn(64),  # ratios on both sides of the clip
        "advantage": torch.randn(64) * 3.0 + 1.0,
        "value_target": torch.randn(64),
    }
    batch = TensorDict(fields, batch_size=[64])
    theirs = TensorDict(
        {
            "observation": observation,
            "action": act.raw.long() if policy == "categorical" else act.action,
            "action_log_prob": fields["log_prob"],
            "advantage": fields["advantage"].unsqueeze(1),
            "value_target": fields["value_target"].unsqueeze(1),
        },
        batch_size=[64],
    )
    torch.manual_seed(7)
    expected = loss(theirs)
    torch.manual_seed(7)
    total, metrics = agent.objective(agent.prepare(batch))
    assert 0.1 < metrics["clip_fraction"] < 0.9
    assert_close(metrics["clip_fraction"], expected["clip_fraction"])
    assert_close(metrics["loss_actor"], expected["loss_objective"], atol=1e-5, rtol=1e-5)
    assert_close(0.5 * metrics["loss_critic"], expected["loss_critic"], atol=1e-5, rtol=1e-5)
    assert_close(metrics["entropy"], expected["entropy"], atol=1e-4, rtol=1e-4)
    expected_total = expected["loss_objective"] + expected["loss_critic"] + expected["loss_entropy"]
    assert_close(total, expected_total, atol=1e-5, rtol=1e-5)
    total.backward()
    expected_total.backward()
    assert_same_gradients(agent.policy, loss.actor_network_params["module", "0", "module", "policy"])
    assert_same_gradients(agent.critic, loss.critic_network_params["module"])


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_returns_over_several_steps(name, transitions):
    """TorchRL reads the number of steps under the same key."""
    torch.manual_seed(1)
    batch = transitions()
    batch["steps_to_next_obs"] = torch.randint(1, 4, (32, 1), generator=torch.Generator().manual_seed(2))
    if name == "sac":
        agent = SAC(observation_dim=5, action_dim=2, hidden_dims=(32, 32), gamma=0.9, initial_alpha=0.3)
        loss = sac_loss(agent)
    else:
        agent = TD3(observation_dim=5, action_dim=2, hidden_dims=(32, 32), gamma=0.9)
        loss = td3_loss(agent)
    torch.manual_seed(7)
    expected = loss(batch.clone())["loss_qvalue"]
    torch.manual_seed(7)
    critic = agent.losses(agent.prepare(batch)).critic if name == "sac" else agent.critic_loss(agent.prepare(batch))[0]
    assert_close(critic, expected, atol=1e-5, rtol=1e-5)
    del batch["steps_to_next_obs"]
    torch.manual_seed(7)
    one_step = (
        agent.losses(agent.prepare(batch)).critic if name == "sac" else agent.critic_loss(agent.prepare(batch))[0]
    )
    assert (one_step - expected).abs() > 1e-3


@pytest.mark.parametrize("agent_class", [SAC, TD3])
def test_critics_with_layer_norm(agent_class, transitions):
    torch.manual_seed(1)
    agent = agent_class(observation_dim=5, action_dim=2, hidden_dims=(32, 32), layer_norm=True)
    batch = transitions()
    loss = (sac_loss if agent_class is SAC else td3_loss)(agent)
    torch.manual_seed(7)
    expected = loss(batch.clone())["loss_qvalue"]
    torch.manual_seed(7)
    critic = (
        agent.losses(agent.prepare(batch)).critic if agent_class is SAC else agent.critic_loss(agent.prepare(batch))[0]
    )
    assert_close(critic, expected, atol=1e-5, rtol=1e-5)


def test_soft_update():
    torch.manual_seed(0)
    agent = SAC(observation_dim=3, action_dim=1, hidden_dims=(8,), tau=0.005)
    loss = sac_loss(agent)
    updater = SoftUpdate(loss, eps=1.0 - agent.tau)  # sets its targets to the online weights
    loss.qvalue_network_params.data.add_(1.0)
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.add_(1.0)
    updater.step()
    soft_update(list(agent.target_critic.parameters()), list(agent.critic.parameters()), agent.tau)
    network = loss.target_qvalue_network_params["module", "network"]
    for key, weight in zip(sorted(network.keys(), key=int), agent.target_critic.weights, strict=True):
        assert_close(weight.transpose(1, 2), network[key, "weight"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("policy", "action"), [("beta", "action"), ("categorical", "raw")])
def test_actor_module_of_other_policies(policy, action):
    torch.manual_seed(0)
    agent = PPO(observation_dim=5, action_dim=2, hidden_dims=(16,), policy=policy, actions=[-1.0, 0.0, 1.0])
    module, data = probabilistic_actor(agent.policy), TensorDict({"observation": torch.randn(8, 5)}, batch_size=[8])
    sampled = module(data.clone())
    batch = agent.policy(data["observation"])
    raw = sampled["action"].float() if policy == "categorical" else (sampled["action"] + 1.0) / 2.0
    assert_close(agent.policy.distribution.log_prob(raw, batch), sampled["action_log_prob"], atol=1e-5, rtol=1e-5)
    with set_interaction_type(InteractionType.DETERMINISTIC):
        certain = module(data.clone())["action"].float()
    assert_close(certain, getattr(agent.act(data["observation"], deterministic=True), action))


@pytest.mark.parametrize("agent_class", [PPO, SAC])
def test_actor_module_scores_what_it_samples(agent_class):
    torch.manual_seed(0)
    agent = agent_class(observation_dim=5, action_dim=2, hidden_dims=(16,))
    observation = torch.randn(8, 5)
    torch.manual_seed(3)
    module = probabilistic_actor(agent.policy)(TensorDict({"observation": observation}, batch_size=[8]))
    torch.manual_seed(3)
    act = agent.act(observation, deterministic=False)
    assert_close(act.action, module["action"])
    assert_close(act.log_prob, module["action_log_prob"].detach(), atol=1e-4, rtol=1e-4)
