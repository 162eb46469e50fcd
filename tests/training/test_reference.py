"""Runs on gymnasium tasks, through the manager and through the command line."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box

from trade_agent import safe_io
from trade_agent.agents.base import Agent
from trade_agent.config.load import compose_config, load_config
from trade_agent.envs.gymnasium_tasks import PlayedEpisodes
from trade_agent.errors import ConfigError, TrainingDivergedError
from trade_agent.training import reference
from trade_agent.training.models import agent_from_state
from trade_agent.training.reference import CHECK_SEEDS, EVALUATION_SEEDS, ReferenceResult
from trade_agent.training.unified_manager import UnifiedTrainingManager

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "stage=rl",
    "env=gymnasium",
    "env.evaluation_episodes=2",
    "env.check_episodes=1",
    "trainer.validation_checks=2",
    "trainer.on_policy_env_steps=256",
    "trainer.off_policy_env_steps=240",
    "model.hidden_sizes=[8]",
    "model.num_envs=2",
    "device=cpu",
    "monitoring=off",
)


def run(folder: Path, *overrides: str) -> ReferenceResult:
    paths = (f"paths.models={folder / 'models'}", f"paths.outputs={folder}")
    config = load_config(compose_config([*SMALL, *paths, *overrides]))
    result = UnifiedTrainingManager(config, run_dir=folder / "run", quiet=True).run()
    assert isinstance(result, ReferenceResult)
    return result


@pytest.mark.parametrize("model", ["ppo", "sac", "td3"])
def test_a_task_is_trained_and_evaluated_and_nothing_is_registered(tmp_path: Path, model: str) -> None:
    result = run(tmp_path, f"model={model}")
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*result.artefacts, "result.json", "lock"])
    stored = json.loads((folder / "result.json").read_text())
    assert stored["objective"]["value"] == result.metrics["mean_return"]
    assert [steps for steps, _ in result.checks][-1] == result.env_steps >= 240
    assert not list((tmp_path / "models").glob("**/*.pth"))


def test_the_figure_is_that_of_the_stored_weights_on_episodes_of_gymnasium(tmp_path: Path) -> None:
    result = run(tmp_path, "model=td3")
    state = safe_io.load_tensors((tmp_path / "run" / "agent.pth").read_bytes(), name="agent.pth")
    agent = agent_from_state(state["agent"], torch.device("cpu"))
    env, returns = gymnasium.make("Pendulum-v1"), []
    for seed in range(EVALUATION_SEEDS, EVALUATION_SEEDS + 2):
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            with torch.no_grad():
                action = agent.act(torch.tensor(observation[None]), deterministic=True).action[0].numpy()
            observation, reward, terminated, truncated, _ = env.step(2.0 * action)  # torques from -2 to 2
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    # The torque passes through float64 in one and float32 in the other.
    assert result.metrics["mean_return"] == pytest.approx(np.mean(returns), rel=1e-4)


def test_the_state_of_the_best_check_is_judged_on_episodes_of_no_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks score 2, 3 and 1; the agent is another one at each of them."""
    weights, seeds, scores = [], [], iter([2.0, 3.0, 1.0, 0.0])

    def evaluate(agent: Agent, task_id: str, first_seed: int, episodes: int, device: torch.device) -> PlayedEpisodes:
        weights.append(copy.deepcopy(agent.state_dict()))
        seeds.append(set(range(first_seed, first_seed + episodes)))
        return PlayedEpisodes(np.full(episodes, next(scores)), np.full(episodes, 200))

    monkeypatch.setattr(reference, "evaluate", evaluate)
    result = run(
        tmp_path,
        "model=td3",
        "trainer.validation_checks=3",
        "env.check_episodes=100_000",
        "env.evaluation_episodes=100_000",
    )
    assert [score for _, score in result.checks] == [2.0, 3.0, 1.0]
    assert (result.validation["mean_return"], result.metrics["mean_return"]) == (3.0, 0.0)
    for name, kept in weights[-1].items():
        assert torch.equal(kept, weights[1][name])
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[1].items())
    assert not seeds[-1] & set.union(*seeds[:-1])


def test_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    first, again, other = (
        run(tmp_path / name, "model=sac", f"seed={seed}") for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert (first.metrics, first.checks) == (again.metrics, again.checks)
    assert first.checks != other.checks
    weights = [(tmp_path / name / "run" / "agent.pth").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("task", "message"),
    [("Pendulum-v99", "cannot be made"), ("CartPole-v1", "Discrete"), ("NoSuchTask-v0", "NoSuchTask-v0")],
)
def test_a_task_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, task: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, f"env.id={task}")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_stage_that_needs_a_market_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a market"):
        load_config(compose_config(["stage=hybrid", "env=gymnasium"]))


@pytest.mark.parametrize("choice", ["true", "auto"])
def test_compiling_is_for_markets(choice: str) -> None:
    with pytest.raises(ConfigError, match=f"device.compile={choice} is for a market"):
        load_config(compose_config([*SMALL, "model=ppo", f"device.compile={choice}"]))


class Pays(gymnasium.Env[Any, Any]):
    """One step an episode. The reward is what was bought for it."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, reward: float) -> None:
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.checked = seed is not None and seed >= CHECK_SEEDS
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), self.reward if self.checked else 0.0, True, False, {}


@pytest.mark.parametrize("reward", [math.nan, math.inf])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_task_whose_checks_are_no_numbers_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int, reward: float
) -> None:
    spec = EnvSpec("Pays-v0", entry_point=Pays, kwargs={"reward": reward})
    monkeypatch.setitem(gymnasium.registry, "Pays-v0", spec)
    options = ["model=td3", "env.id=Pays-v0", f"stage.copies={copies}", "trainer.divergence_retries=0"]
    with pytest.raises(TrainingDivergedError, match="Pays-v0 gave a mean return"):
        run(tmp_path, *options)


def test_the_command_line_ends_with_the_figure(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "model=ppo", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1].startswith("Pendulum-v1 ppo: mean return -")
    refused = subprocess.run([*command[:-1], "env.id=CartPole-v1"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "CartPole-v1" in refused.stderr
