"""Tasks of gymnasium in one batch: each copy is gymnasium's own environment, to the last observation of an episode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from trade_agent.envs.batched import Experience
from trade_agent.envs.gymnasium_tasks import GymnasiumTasks, play, rescale
from trade_agent.errors import ConfigError, TrainingDivergedError

TASK, LIMIT = "trade_agent_tests/Climb-v0", 6


class Climb(gymnasium.Env[Any, Any]):
    """The action, in [-1, 3], is added to the height; the top, drawn with the start, ends the episode."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 3.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.height, self.top = self.np_random.uniform(0.0, 1.0), self.np_random.uniform(4.0, 8.0)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.height += float(action[0])
        return self._seen(), 0.5 * self.height, self.height > self.top, False, {}

    def _seen(self) -> Any:
        return np.array([self.height, self.top], dtype=np.float32)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(TASK, entry_point=Climb, max_episode_steps=LIMIT)
    yield
    del gymnasium.registry[TASK]


def drawn_actions(steps: int, num_envs: int = 3) -> torch.Tensor:
    return torch.rand(steps, num_envs, 1, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


def test_each_copy_is_an_environment_of_gymnasium() -> None:
    tasks = GymnasiumTasks(TASK, num_envs=3, reward_scale=10.0, seed=7)
    alone = [gymnasium.make(TASK) for _ in range(3)]
    seen = [env.reset(seed=7 + index)[0] for index, env in enumerate(alone)]
    ends = {"terminated": 0, "truncated": 0}
    for action in drawn_actions(40):
        assert torch.equal(tasks.private, torch.tensor(np.stack(seen)))
        step = tasks.step(action)
        assert torch.equal(step.private, torch.tensor(np.stack(seen)))
        for index, env in enumerate(alone):
            after, reward, terminated, truncated, _ = env.step(np.array([1.0 + 2.0 * float(action[index])]))
            np.testing.assert_allclose(step.next_private[index].numpy(), after, rtol=1e-6)
            assert float(step.reward[index]) == pytest.approx(10.0 * float(reward), rel=1e-6)
            assert (bool(step.terminated[index]), bool(step.truncated[index])) == (terminated, truncated)
            ends["terminated"] += terminated
            ends["truncated"] += truncated and not terminated
            seen[index] = env.reset()[0] if terminated or truncated else tasks.private[index].numpy()
    assert min(ends.values()) > 3
    assert torch.equal(tasks.t, torch.zeros(3, dtype=torch.int64))


def test_all_steps_played_again_lead_to_the_same_state() -> None:
    def make() -> GymnasiumTasks:
        return GymnasiumTasks(TASK, num_envs=3, reward_scale=1.0, seed=7)

    first, again = make(), make()
    actions = drawn_actions(30)
    for action in actions[:20]:
        first.step(action)
    again.load_state_dict(first.state_dict())
    for action in actions[20:]:
        for name, one, two in zip(Experience._fields, first.step(action), again.step(action), strict=True):
            assert torch.equal(one, two), name


def test_episodes_of_different_lengths_are_played_to_their_ends() -> None:
    def climb(observation: torch.Tensor) -> torch.Tensor:
        """1 a step below a height of 3, then 3."""
        return torch.where(observation[:, :1] < 3.0, 0.0, 1.0)

    played = play(climb, TASK, seeds=range(8))
    lengths = []
    for seed in range(8):
        start = gymnasium.make(TASK).reset(seed=seed)[0]
        heights = [float(start[0])]
        while heights[-1] <= float(start[1]):
            heights.append(heights[-1] + (1.0 if heights[-1] < 3.0 else 3.0))
        lengths.append(len(heights) - 1)
        assert played.returns[seed] == pytest.approx(0.5 * sum(heights[1:]), rel=1e-5)
    assert played.lengths.tolist() == lengths
    assert len(set(lengths)) > 1


def test_actions_fill_the_range_of_the_task() -> None:
    box = Box(np.array([[-1.0, 0.0]], dtype=np.float32), np.array([[3.0, 10.0]], dtype=np.float32))
    actions = torch.tensor([[-1.0, -1.0], [0.0, 0.5], [1.0, 4.0]])
    assert rescale(actions, box).tolist() == [[[-1.0, 0.0]], [[1.0, 7.5]], [[3.0, 10.0]]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_played(value: float) -> None:
    with pytest.raises(TrainingDivergedError, match="the policy gave NaN or infinity"):
        GymnasiumTasks(TASK, num_envs=1, reward_scale=1.0, seed=0).step(torch.tensor([[value]]))
    with pytest.raises(TrainingDivergedError, match="the policy gave NaN or infinity"):
        play(lambda observation: torch.full((len(observation), 1), value), TASK, seeds=[0])


def test_unbounded_actions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Climb, "action_space", Box(-np.inf, np.inf, (1,), np.float32))
    with pytest.raises(ConfigError, match="has unbounded actions"):
        GymnasiumTasks(TASK, num_envs=1, reward_scale=1.0, seed=0)
