import math

import torch
from torch.testing import assert_close
from torchrl.modules import TanhNormal

from trade_agent.agents.policies import FreeStdPolicy, StateStdPolicy, squashed_action, squashed_log_prob, tanh_log_det


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
    act = squashed_action(policy, observation, deterministic=False)
    loc, log_std = policy(observation)
    assert_close(act.raw.std(), torch.tensor(math.exp(-1.0)), atol=0.005, rtol=0.0)
    assert_close(act.raw.mean(), loc[0, 0].detach(), atol=0.005, rtol=0.0)
    assert_close(act.action, act.raw.tanh())
    assert_close(act.log_prob, squashed_log_prob(act.raw, loc, log_std).detach())
    certain = squashed_action(policy, observation[:2], deterministic=True)
    assert_close(certain.action, loc[:2].tanh().detach())


def test_state_dependent_deviation_is_clamped():
    policy = StateStdPolicy(torch.nn.Linear(1, 2))
    with torch.no_grad():
        policy.network.bias.copy_(torch.tensor([0.0, 50.0]))
    assert policy(torch.zeros(1, 1))[1].item() == 2.0
    with torch.no_grad():
        policy.network.bias.copy_(torch.tensor([0.0, -50.0]))
    assert policy(torch.zeros(1, 1))[1].item() == -20.0
