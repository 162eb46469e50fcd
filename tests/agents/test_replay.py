import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.errors import CheckpointError, ConfigError


def numbered(first, count, private_dim=2, action_dim=1):
    """Transitions that can be told apart in every field."""
    t = torch.arange(first, first + count)
    number = t.float()
    return Transitions(
        t=t,
        private=number.unsqueeze(1) + torch.arange(private_dim) / 10.0,
        action=-number.unsqueeze(1).expand(-1, action_dim),
        reward=number * 2.0,
        terminated=t % 3 == 0,
        next_private=number.unsqueeze(1) + 1.0 + torch.arange(private_dim) / 10.0,
        steps=1 + t % 5,
    )


def check_rows(sample):
    expected = [numbered(int(t), 1, sample.private.shape[1], sample.action.shape[1]) for t in sample.t]
    for index, row in enumerate(expected):
        for ours, theirs in zip(sample, row, strict=True):
            assert_close(ours[index], theirs[0], check_dtype=False)


def test_rows_come_back_whole_with_their_types():
    buffer = ReplayBuffer(capacity=10, private_dim=2, action_dim=3)
    buffer.extend(numbered(5, 6, action_dim=3))
    sample = buffer.sample(50, torch.Generator().manual_seed(0))
    assert [part.dtype for part in sample] == [
        torch.int32,
        *[torch.float32] * 3,
        torch.bool,
        torch.float32,
        torch.int32,
    ]
    assert set(sample.t.tolist()) == {5, 6, 7, 8, 9, 10}  # nothing of the rows that were never filled
    check_rows(sample)


def test_wrap_around_overwrites_the_oldest():
    buffer = ReplayBuffer(capacity=10, private_dim=2, action_dim=1)
    for first in (0, 4, 8, 12):
        buffer.extend(numbered(first, 4))
    assert len(buffer) == 10
    sample = buffer.sample(400, torch.Generator().manual_seed(0))
    assert set(sample.t.tolist()) == set(range(6, 16))
    check_rows(sample)


@settings(deadline=None, max_examples=40)
@given(capacity=st.integers(1, 12), sizes=st.lists(st.integers(0, 12), max_size=8))
def test_holds_the_newest_rows(capacity, sizes):
    buffer, written = ReplayBuffer(capacity=capacity, private_dim=1, action_dim=1), 0
    for size in (min(size, capacity) for size in sizes):
        buffer.extend(numbered(written, size, private_dim=1))
        written += size
    assert len(buffer) == min(written, capacity)
    if written:
        seen = buffer.sample(60 * capacity, torch.Generator().manual_seed(0)).t.tolist()
        assert set(seen) == set(range(max(0, written - capacity), written))


def test_more_rows_than_capacity_is_refused():
    with pytest.raises(ConfigError, match="11 transitions do not fit a replay buffer of capacity 10"):
        ReplayBuffer(capacity=10, private_dim=2, action_dim=1).extend(numbered(0, 11))


def test_a_transition_of_one_asset_takes_63_bytes():
    assert ReplayBuffer(capacity=1, private_dim=6, action_dim=1).bytes_per_transition == 63


def test_one_number_of_steps_serves_all_rows():
    buffer = ReplayBuffer(capacity=4, private_dim=2, action_dim=1)
    buffer.extend(numbered(0, 4)._replace(steps=1))
    sample = buffer.sample(40, torch.Generator().manual_seed(0))
    assert set(sample.steps.tolist()) == {1}
    assert torch.equal(sample.terminated, sample.t % 3 == 0)


def test_large_bar_indices_survive():
    buffer = ReplayBuffer(capacity=2, private_dim=1, action_dim=1)
    buffer.extend(numbered(0, 1, private_dim=1)._replace(t=torch.tensor([2_000_000_011])))
    assert buffer.sample(1, torch.Generator()).t.item() == 2_000_000_011


def test_resumed_buffer_goes_on_alike():
    one, other = (ReplayBuffer(capacity=10, private_dim=2, action_dim=1) for _ in range(2))
    one.extend(numbered(0, 7))
    other.load_state_dict(one.state_dict())
    for buffer in (one, other):
        buffer.extend(numbered(7, 6))
    samples = [buffer.sample(32, torch.Generator().manual_seed(3)) for buffer in (one, other)]
    for left, right in zip(*samples, strict=True):
        assert torch.equal(left, right)


def test_stored_rows_are_a_copy():
    buffer = ReplayBuffer(capacity=4, private_dim=2, action_dim=1)
    buffer.extend(numbered(0, 4))
    state = buffer.state_dict()
    buffer.extend(numbered(50, 4))
    buffer.load_state_dict(state)
    assert set(buffer.sample(50, torch.Generator().manual_seed(0)).t.tolist()) == {0, 1, 2, 3}


def test_state_of_another_shape_is_refused():
    state = ReplayBuffer(capacity=10, private_dim=2, action_dim=1).state_dict()
    with pytest.raises(CheckpointError, match="capacity 10 and 6 numbers a row, this one 10 and 8"):
        ReplayBuffer(capacity=10, private_dim=3, action_dim=1).load_state_dict(state)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("more", [0, 8])  # the next rows lie together, or go on at the start of the ring
def test_rows_of_another_width_are_refused_and_change_nothing(width, more):
    buffer = ReplayBuffer(capacity=10, private_dim=2, action_dim=1)
    buffer.extend(numbered(0, 10))
    buffer.extend(numbered(10, more))
    before = buffer.state_dict()
    wrong = numbered(20, 4)._replace(private=torch.zeros(4, width), next_private=torch.zeros(4, 4 - width))
    shapes = f"of the shapes [4], [4, {width}], [4, 1], [4], [4], [4, {4 - width}], [4] do not fit 4 rows"
    with pytest.raises(ValueError, match=re.escape(shapes)):
        buffer.extend(wrong)
    assert buffer.position == before["position"]
    assert_close(buffer.state_dict()["rows"], before["rows"], rtol=0, atol=0)


@pytest.mark.parametrize("field", ["private", "action", "reward", "terminated", "next_private", "steps"])
@pytest.mark.parametrize("rows", [1, 6])
def test_another_number_of_rows_in_a_field_is_refused_and_changes_nothing(field, rows):
    buffer = ReplayBuffer(capacity=10, private_dim=2, action_dim=1)
    buffer.extend(numbered(0, 10))
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="do not fit 4 rows of a replay buffer"):
        buffer.extend(numbered(20, 4)._replace(**{field: getattr(numbered(20, rows), field)}))
    assert buffer.position == before["position"]
    assert_close(buffer.state_dict()["rows"], before["rows"], rtol=0, atol=0)


def test_a_number_of_steps_that_is_too_large_is_refused_and_change_nothing():
    buffer = ReplayBuffer(capacity=10, private_dim=2, action_dim=1)
    buffer.extend(numbered(0, 10))
    before = buffer.state_dict()
    with pytest.raises(RuntimeError, match="overflow"):
        buffer.extend(numbered(20, 4)._replace(steps=40_000))
    assert_close(buffer.state_dict()["rows"], before["rows"], rtol=0, atol=0)


def test_a_buffer_of_another_layout_is_refused():
    state = {"words": torch.zeros(3, 8, dtype=torch.int32), "position": 3, "capacity": 10}
    with pytest.raises(CheckpointError, match="of an earlier version"):
        ReplayBuffer(capacity=10, private_dim=2, action_dim=1).load_state_dict(state)


def test_numbers_of_another_precision_are_kept_as_float32():
    buffer = ReplayBuffer(capacity=10, private_dim=2, action_dim=1)
    given = numbered(0, 6)
    buffer.extend(given._replace(private=given.private.double(), reward=given.reward.double()))
    same = ReplayBuffer(capacity=10, private_dim=2, action_dim=1)
    same.extend(given)
    assert_close(buffer.state_dict()["rows"], same.state_dict()["rows"], rtol=0, atol=0)
