import math

import pytest
import torch
from torch.testing import assert_close
from torchrl.modules import TanhNormal

from trade_agent.agents.policies import (
    BetaPolicy,
    CategoricalPolicy,
    FreeStdPolicy,
    Positions,
    StateStdPolicy,
    StretchedBeta,
    policy_action,
    policy_outputs,
    squashed_log_prob,
    tanh_log_det,
)
from trade_agent.errors import ConfigError


def test_density_equals_torchrl_where_tanh_can_be_inverted():
    torch.manual_seed(0)
    loc, log_std = torch.randn(64, 3) * 0.5, torch.randn(64, 3) * 0.3
    raw = loc + log_std.exp() * torch.randn(64, 3)
    expected = TanhNormal(loc, log_std.exp()).log_prob(raw.tanh())
    inside = raw.abs().max(1).values < 3.0
    assert inside.sum() > 50
    assert_close(squashed_log_prob(raw, loc, log_std)[inside], expected[inside], atol=1e-3, rtol=1e-4)
    # In float64 the inverse is exact enough for a sharp comparison.
    loc, log_std, raw = loc.double(), log_std.double(), raw.double()
    expected = TanhNormal(loc, log_std.exp()).log_prob(raw.tanh())
    assert_close(squashed_log_prob(raw, loc, log_std), expected, atol=1e-9, rtol=1e-9)


def test_density_of_saturated_actions_stays_exact():
    raw = torch.tensor([[20.0], [-20.0]])
    # 1 - tanh(20)^2 is 4 exp(-40) in exact arithmetic, and 0 in float32
    assert_close(tanh_log_det(raw), torch.full((2,), math.log(4.0) - 40.0))
    log_prob = squashed_log_prob(raw, raw, torch.zeros(2, 1))
    assert_close(log_prob, torch.full((2,), -0.5 * math.log(2 * math.pi) - math.log(4.0) + 40.0))


def test_density_integrates_to_one():
    action = torch.linspace(-1.0, 1.0, 200_001, dtype=torch.float64)[1:-1]
    loc, log_std = torch.tensor([[0.3]]).double(), torch.tensor([[-0.5]]).double()
    density = squashed_log_prob(action.atanh().unsqueeze(1), loc, log_std).exp()
    assert_close(torch.trapezoid(density, action), torch.tensor(1.0).double(), atol=1e-5, rtol=0.0)


def test_sampled_actions_have_the_stated_distribution_and_score():
    torch.manual_seed(0)
    policy = FreeStdPolicy(torch.nn.Linear(1, 1), action_dim=1, initial_log_std=-1.0)
    observation = torch.zeros(100_000, 1)
    act = policy_action(policy, observation, deterministic=False)
    loc, log_std = policy(observation)
    assert_close(act.raw.std(), torch.tensor(math.exp(-1.0)), atol=0.005, rtol=0.0)
    assert_close(act.raw.mean(), loc[0, 0].detach(), atol=0.005, rtol=0.0)
    assert_close(act.action, act.raw.tanh())
    assert_close(act.log_prob, squashed_log_prob(act.raw, loc, log_std).detach())
    certain = policy_action(policy, observation[:2], deterministic=True)
    assert_close(certain.action, loc[:2].tanh().detach())


def test_beta_density_by_hand():
    # Beta(2, 3) has density 12 u (1 - u)^2: 1.6875 at u = 1/4, and half of it at the action -1/2
    parameters = (torch.tensor([[2.0, 2.0]]), torch.tensor([[3.0, 3.0]]))
    beta, raw = StretchedBeta(), torch.tensor([[0.25, 0.25]])
    assert_close(beta.action(raw), torch.tensor([[-0.5, -0.5]]))
    assert_close(beta.log_prob(raw, parameters), torch.tensor([2.0 * math.log(0.84375)]))
    assert_close(beta.action(beta.centre(parameters)), torch.tensor([[-0.2, -0.2]]))  # 2 * 2 / 5 - 1


def test_beta_entropy_is_that_of_the_action():
    parameters = (torch.tensor([[1.7, 4.0]]).double(), torch.tensor([[2.2, 1.3]]).double())
    beta = StretchedBeta()
    unit = torch.linspace(0.0, 1.0, 200_001, dtype=torch.float64)[1:-1].unsqueeze(1)
    expected = torch.zeros(()).double()
    for dimension in range(2):
        one = tuple(parameter[:, dimension : dimension + 1] for parameter in parameters)
        log_density = beta.log_prob(unit, one)
        action = beta.action(unit).squeeze(1)
        assert_close(torch.trapezoid(log_density.exp(), action), torch.tensor(1.0).double(), atol=1e-5, rtol=0.0)
        expected -= torch.trapezoid(log_density.exp() * log_density, action)
    assert_close(beta.entropy(parameters, torch.empty(0)), expected.unsqueeze(0), atol=1e-5, rtol=0.0)


def test_beta_policy_has_one_peak_and_samples_what_it_says():
    torch.manual_seed(0)
    policy = BetaPolicy(torch.nn.Linear(1, 2))
    with torch.no_grad():
        policy.network.weight.zero_()
        policy.network.bias.copy_(torch.tensor([0.0, -40.0]))
    alpha, beta = policy(torch.zeros(100_000, 1))
    assert_close(alpha[0].detach(), torch.tensor([1.0 + math.log(2.0)]))  # 1 + softplus(0)
    assert beta.min() >= 1.0
    act = policy_action(policy, torch.zeros(100_000, 1), deterministic=False)
    assert act.action.abs().max() < 1.0
    assert act.log_prob.isfinite().all()
    certain = policy_action(policy, torch.zeros(1, 1), deterministic=True)
    assert_close(act.action.mean(), certain.action.squeeze(), atol=0.005, rtol=0.0)


def test_positions_by_hand():
    # two assets, three positions; probabilities (0.2, 0.3, 0.5) and (0.7, 0.2, 0.1)
    parameters = (torch.tensor([[[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]]]).log(),)
    positions = Positions([-1.0, 0.25, 1.0])
    raw = torch.tensor([[2.0, 1.0]])
    assert positions.action(raw).tolist() == [[1.0, 0.25]]
    assert_close(positions.log_prob(raw, parameters), torch.tensor([math.log(0.5 * 0.2)]))
    assert positions.action(positions.centre(parameters)).tolist() == [[1.0, -1.0]]
    entropy = -(0.2 * math.log(0.2) + 0.3 * math.log(0.3) + 0.5 * math.log(0.5))
    entropy -= 0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)
    assert_close(positions.entropy(parameters, torch.empty(0)), torch.tensor([entropy]))
    torch.manual_seed(0)
    many = positions.sample((parameters[0].expand(100_000, 2, 3),))
    for asset, expected in enumerate(parameters[0].exp()[0]):
        share = torch.bincount(many[:, asset].long()) / 100_000
        assert_close(share, expected, atol=0.006, rtol=0.0)


def test_categorical_policy_keeps_assets_apart():
    policy = CategoricalPolicy(torch.nn.Linear(1, 6), actions=[-1.0, 0.0, 1.0])
    with torch.no_grad():
        policy.network.weight.zero_()
        policy.network.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0, 9.0]))
    act = policy_action(policy, torch.zeros(2, 1), deterministic=True)
    assert act.action.tolist() == [[-1.0, 1.0]] * 2
    assert_close(policy(torch.zeros(2, 1))[0].exp().sum(-1), torch.ones(2, 2))


def test_unknown_policies_and_positions_without_actions_are_refused():
    with pytest.raises(ConfigError, match="policy 'cauchy' is unknown; choose one of gaussian, beta, categorical"):
        policy_outputs("cauchy", action_dim=1, actions=None)
    with pytest.raises(ConfigError, match="nothing to choose from"):
        policy_outputs("categorical", action_dim=1, actions=None)


def test_state_dependent_deviation_is_clamped():
    policy = StateStdPolicy(torch.nn.Linear(1, 2))
    with torch.no_grad():
        policy.network.bias.copy_(torch.tensor([0.0, 50.0]))
    assert policy(torch.zeros(1, 1))[1].item() == 2.0
    with torch.no_grad():
        policy.network.bias.copy_(torch.tensor([0.0, -50.0]))
    assert policy(torch.zeros(1, 1))[1].item() == -20.0


def test_samples_of_a_beta_density_keep_off_the_bounds():
    torch.manual_seed(0)
    alpha, beta = torch.tensor([[1e9, 1.5]]), torch.tensor([[1.5, 1e9]])
    assert StretchedBeta().sample((alpha, beta)).tolist() == [pytest.approx([1.0 - 1e-6, 1e-6], abs=1e-7)]
