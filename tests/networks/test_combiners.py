import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from trade_agent.networks.combiners import GateCombiner, mean_action, vote_action, weighted_action

ACTIONS = torch.tensor([[[0.8, -0.2]], [[0.4, 0.6]], [[-0.9, 0.0]]])  # 3 members, 1 row, 2 assets


def test_mean_and_weighted():
    assert_close(mean_action(ACTIONS), torch.tensor([[0.1, 0.4 / 3.0]]))
    assert_close(weighted_action(ACTIONS, torch.tensor([2.0, 1.0, 1.0])), torch.tensor([[0.275, 0.05]]))
    assert_close(weighted_action(ACTIONS, torch.tensor([0.0, 5.0, 0.0])), ACTIONS[1])


def test_vote_takes_the_majority_sign_at_the_size_of_its_voters():
    # asset 0: two long at 0.8 and 0.4 against one short; asset 1: one short, one long, one flat, no majority
    assert_close(vote_action(ACTIONS), torch.tensor([[0.6, 0.0]]))
    flat_wins = torch.tensor([0.0, 0.0, 0.9]).view(3, 1, 1)
    assert vote_action(flat_wins).item() == 0.0
    shorts = torch.tensor([-0.2, -0.4, 0.9]).view(3, 1, 1)
    assert_close(vote_action(shorts), torch.tensor([[-0.3]]))
    assert vote_action(torch.tensor([torch.nan, 0.5, 0.5]).view(3, 1, 1)).isnan().all()


@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=7))
def test_combined_actions_stay_within_those_of_the_members(values):
    actions = torch.tensor(values).view(-1, 1, 1)
    low, high = min(values), max(values)
    for combined in (mean_action(actions), weighted_action(actions, torch.ones(len(values)))):
        assert low - 1e-6 <= combined.item() <= high + 1e-6
    assert min(low, 0.0) - 1e-6 <= vote_action(actions).item() <= max(high, 0.0) + 1e-6
    assert vote_action(-actions).item() == -vote_action(actions).item()


def test_gate_starts_as_the_mean_and_learns_which_member_is_right():
    torch.manual_seed(0)
    gate = GateCombiner(feature_dim=2, num_members=2, hidden_dims=(16,))
    features = torch.randn(256, 2)
    actions = torch.stack((torch.ones(256, 1), -torch.ones(256, 1)))
    assert_close(gate(actions, features), mean_action(actions))
    target = features[:, :1].sign()  # member 0 is right where the first feature is positive
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (gate(actions, features) - target).square().mean().backward()
        optimizer.step()
    assert (gate(actions, features) - target).square().mean() < 0.05
    assert_close(gate.weights(features).sum(1), torch.ones(256))
