"""Tasks of gymnasium as batched environments: where the agents are measured against published figures.

Shapes: N environments, K observation, A action dimensions. A task has no bars: t is 0 throughout, and the whole
observation is the private state.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Space
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from trade_agent.envs.batched import Experience
from trade_agent.errors import ConfigError, TrainingDivergedError

Floats = NDArray[np.float64]
Act = Callable[[Tensor], Tensor]  # observation [B, K] -> action [B, A] in [-1, 1]


class PlayedEpisodes(NamedTuple):
    """Finished episodes, one value each."""

    returns: Floats  # sum of rewards, neither scaled nor discounted
    lengths: NDArray[np.int64]


def make_env(task_id: str) -> gymnasium.Env[Any, Any]:
    """Raises ConfigError for a task that does not exist, is not installed, or has discrete or unbounded actions."""
    try:
        env = gymnasium.make(task_id, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"env.id={task_id} cannot be made: {line}", remedy_of(error)) from error
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, Box):
            what = f"env.id={task_id} has {name} of {space}, and the agents take vectors of real numbers"
            raise ConfigError(what, "use a task with Box observations and Box actions, such as Pendulum-v1")
    if not env.action_space.is_bounded():  # type: ignore[attr-defined]
        raise ConfigError(f"env.id={task_id} has unbounded actions {env.action_space}", "use a task with bounded ones")
    return env


def size(space: Space[Any]) -> int:
    """Numbers in one value of a Box."""
    assert isinstance(space, Box)
    return math.prod(space.shape)


def remedy_of(error: Exception) -> str:
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        return "pip install 'trade-agent[reference]', or what the task's own page asks for"
    return "see python -c 'import gymnasium; gymnasium.pprint_registry()'"


class GymnasiumTasks:
    """N copies of one task, stepped one after another, each restarted in the step that ends its episode.

    seed: of the first copy; the others follow it. Rewards are multiplied by `reward_scale`.
    """

    def __init__(
        self, task_id: str, *, num_envs: int, reward_scale: float, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.num_envs, self.reward_scale, self._device = num_envs, reward_scale, torch.device(device)
        self.envs = SyncVectorEnv([lambda: make_env(task_id)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.private_dim = size(self.envs.single_observation_space)
        self.action_dim = size(self.envs.single_action_space)
        self._actions = bytearray()  # every action so far, float32: no simulator tells its own state
        observation, _ = self.envs.reset(seed=seed)
        self.private = self._tensor(observation)
        self.t = torch.zeros(num_envs, dtype=torch.int64, device=self._device)

    @property
    def device(self) -> torch.device:
        return self._device

    def step(self, action: Tensor) -> Experience:
        """One step of every copy; `action` [N, A] in [-1, 1] means the range of the task's own action space."""
        box = self.envs.single_action_space
        assert isinstance(box, Box)
        played = rescale(action, box)
        self._actions += action.to("cpu", torch.float32).numpy().tobytes()
        observation, reward, terminated, truncated, info = self.envs.step(played)
        self.private, private = self._tensor(observation), self.private
        next_private = self.private
        done = terminated | truncated
        if done.any():
            # `observation` is already the first one of the next episode there.
            next_private = self.private.clone()
            ended = np.flatnonzero(done)
            next_private[ended] = self._tensor(np.stack([info["final_obs"][index] for index in ended]))
        return Experience(
            self.t,
            private,
            torch.as_tensor(reward * self.reward_scale, dtype=torch.float32, device=self._device),
            torch.tensor(terminated, device=self._device),
            torch.tensor(truncated, device=self._device),
            next_private,
        )

    def state_dict(self) -> dict[str, Any]:
        """The actions so far, from which `load_state_dict` plays everything again."""
        actions = torch.frombuffer(self._actions, dtype=torch.float32) if self._actions else torch.zeros(0)
        return {"actions": actions.view(-1, self.num_envs, self.action_dim).clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For a fresh object made with the same arguments. Takes the time of all steps so far, without the learning."""
        for action in state["actions"]:
            self.step(action.to(self._device))

    def _tensor(self, observation: NDArray[Any]) -> Tensor:
        """[B, ...] -> [B, K] float32, a copy."""
        return torch.tensor(observation.reshape(len(observation), -1), dtype=torch.float32, device=self._device)


def rescale(action: Tensor, box: Box) -> NDArray[Any]:
    """[B, A] in [-1, 1] -> [B, *shape] between the bounds of the box.

    Raises TrainingDivergedError for NaN or infinity: some simulators play on with what was no action.
    """
    values = action.double().cpu().numpy().reshape(-1, *box.shape)
    if not np.isfinite(values).all():
        raise TrainingDivergedError("the policy gave NaN or infinity", "lower model.learning_rate")
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    unit = (values.clip(-1.0, 1.0) + 1.0) / 2.0
    return (low + unit * (high - low)).astype(box.dtype)


def play(act: Act, task_id: str, *, seeds: Sequence[int], device: torch.device | str = "cpu") -> PlayedEpisodes:
    """One whole episode for each seed, played side by side, with the actions of `act`."""
    envs = [make_env(task_id) for _ in seeds]
    box = envs[0].action_space
    assert isinstance(box, Box)
    observation = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    returns, lengths = np.zeros(len(envs)), np.zeros(len(envs), dtype=np.int64)
    running = np.arange(len(envs))
    while len(running):
        seen = torch.tensor(observation[running].reshape(len(running), -1), dtype=torch.float32, device=device)
        done = np.zeros(len(running), dtype=bool)
        for place, (index, action) in enumerate(zip(running, rescale(act(seen), box), strict=True)):
            observation[index], reward, terminated, truncated, _ = envs[index].step(action)
            returns[index] += float(reward)
            lengths[index] += 1
            done[place] = terminated or truncated
        running = running[~done]
    for env in envs:
        env.close()
    return PlayedEpisodes(returns, lengths)
