"""Returns over several steps, worked out by hand: gamma 1/2, windows of three steps."""

import pytest
import torch
from torch.testing import assert_close

from trade_agent.agents.n_step import NStepWindow
from trade_agent.agents.replay import Transitions


def step(t, rewards, terminated):
    """Environments side by side; private, action and next private tell which one and when."""
    number = torch.arange(len(rewards)) * 100.0 + t
    return Transitions(
        t=torch.full((len(rewards),), t),
        private=number.unsqueeze(1),
        action=-number.unsqueeze(1),
        reward=torch.tensor(rewards),
        terminated=torch.tensor(terminated),
        next_private=number.unsqueeze(1) + 0.5,
    )


def run(rewards, *, terminated_at=(), truncated_at=(), n_step=3):
    """One environment with these rewards at t = 0, 1, ...: the transitions that come out."""
    window, out = NStepWindow(n_step, 0.5), []
    for t, reward in enumerate(rewards):
        made = window.add(step(t, [reward], [t in terminated_at]), torch.tensor([t in truncated_at]))
        out += [] if made is None else [made]
    return out


def test_one_step_is_passed_through():
    made = run([1.0, 2.0], terminated_at=(1,), n_step=1)
    assert [(row.t.item(), row.reward.item(), row.terminated.item(), row.steps) for row in made] == [
        (0, 1.0, False, 1),
        (1, 2.0, True, 1),
    ]


def rows(made):
    return [
        (row.t.item(), row.reward.item(), row.steps.item(), row.terminated.item(), row.next_private.item())
        for row in made
    ]


def test_three_steps():
    # 1 + 2 / 2 + 4 / 4 = 3 and 2 + 4 / 2 + 8 / 4 = 6; the next observation is that of bar t + 3
    made = run([1.0, 2.0, 4.0, 8.0])
    assert rows(made) == [(0, 3.0, 3, False, 2.5), (1, 6.0, 3, False, 3.5)]
    assert made[1].private.item() == 1.0
    assert made[1].action.item() == -1.0


@pytest.mark.parametrize("terminated", [True, False])
def test_an_end_inside_the_window(terminated):
    """The episode ends with the step at t = 1: what comes after is another one's, whichever way it ended."""
    ends = {"terminated_at": (1,)} if terminated else {"truncated_at": (1,)}
    made = run([1.0, 2.0, 4.0, 8.0, 16.0], **ends)
    assert rows(made) == [
        (0, 2.0, 2, terminated, 1.5),  # 1 + 2 / 2
        (1, 2.0, 1, terminated, 1.5),
        (2, 12.0, 3, False, 4.5),  # 4 + 8 / 2 + 16 / 4
    ]


def test_an_end_at_the_last_step_of_the_window():
    assert rows(run([1.0, 2.0, 4.0], terminated_at=(2,))) == [(0, 3.0, 3, True, 2.5)]
    assert rows(run([1.0, 2.0, 4.0], truncated_at=(2,))) == [(0, 3.0, 3, False, 2.5)]


def test_two_ends_in_one_window_count_the_first():
    assert rows(run([1.0, 2.0, 4.0], truncated_at=(0,), terminated_at=(1,)))[0] == (0, 1.0, 1, False, 0.5)


def test_environments_end_on_their_own():
    window = NStepWindow(2, 0.5)
    assert window.add(step(0, [1.0, 1.0, 1.0], [True, False, False]), torch.tensor([False, True, False])) is None
    made = window.add(step(1, [2.0, 2.0, 2.0], [False, False, True]), torch.zeros(3, dtype=torch.bool))
    assert_close(made.reward, torch.tensor([1.0, 1.0, 2.0]))
    assert made.terminated.tolist() == [True, False, True]
    assert made.steps.tolist() == [1, 1, 2]
    assert made.next_private.squeeze(1).tolist() == [0.5, 100.5, 201.5]
