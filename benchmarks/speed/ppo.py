"""G6: PPO from rollout to update with the same hyper-parameters on both sides."""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks.speed.env import random_walk
from benchmarks.speed.measure import Figure, clock, first_run, gradients_agree, in_turn
from benchmarks.speed.peer import Peer, reported_if_missing
from trade_agent.agents.policies import tanh_log_det
from trade_agent.agents.ppo import PPO
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.training.capture import CapturedLearner
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.graphs import CudaGraphs
from trade_agent.training.learner import Learner
from trade_agent.training.reinforcement import Hooks, train_on_policy

NUM_ENVS, ROLLOUT_STEPS, EPOCHS, BATCH = 16, 128, 10, 64
NUM_BARS, EPISODE_BARS, FEATURES = 10_000, 256, 32
SETTINGS: dict[str, Any] = {"learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95}
ROLLOUTS = 1  # in one run
TARGETS = {"cpu": 3.0, "cuda": 10.0}


def measure(repeats: int, device: torch.device) -> None:
    with reported_if_missing("G6 PPO", "Stable-Baselines3"):
        against_stable_baselines3(repeats, device)


def against_stable_baselines3(repeats: int, device: torch.device) -> None:
    torch.manual_seed(0)
    series, features = random_walk(NUM_BARS), torch.randn(NUM_BARS, 1, FEATURES)
    resident, table = random_walk(NUM_BARS, device), features[:, 0].to(device)
    with tempfile.TemporaryDirectory() as folder, Peer("stable_baselines3") as peer:
        path = str(Path(folder, "market.npz"))
        np.savez(path, open=series.open.numpy(), close=series.close.numpy(), features=features.numpy())
        versions = peer.ask(
            "ppo",
            path=path,
            num_envs=NUM_ENVS,
            episode_bars=EPISODE_BARS,
            rollout_steps=ROLLOUT_STEPS,
            settings=SETTINGS | {"n_epochs": EPOCHS, "batch_size": BATCH},
        )
        peer.ask("ppo_rollouts", count=1)
        minibatch = str(Path(folder, "minibatch.npz"))
        theirs = peer.ask("ppo_losses", path=minibatch)
        for compiled in (True, False):
            torch.compiler.reset()
            agrees = same_losses(theirs, dict(np.load(minibatch)), compiled)
            env = TrainingMarket(
                series=resident,
                rules=MarketRules(),
                rows=range(NUM_BARS),
                num_envs=NUM_ENVS,
                episode_bars=EPISODE_BARS,
                reward_scale=1.0,
                generator=torch.Generator(device).manual_seed(0),
                compiled=compiled,
            )
            ours = trainer(env, table, compiled)
            name = f"G6 PPO, {NUM_ENVS} accounts, {EPOCHS} epochs in minibatches of {BATCH}"
            if compiled:
                first_run(name, ours)
            side, other = in_turn(
                partial(clock(device), ours), lambda: peer.ask("ppo_rollouts", count=ROLLOUTS), repeats
            )
            steps = ROLLOUTS * ROLLOUT_STEPS * NUM_ENVS
            Figure(
                figure=name if compiled else f"{name}, eager",
                unit="env steps/s",
                ours=steps / side,
                peer=steps / other,
                peer_name="Stable-Baselines3",
                ratio=other / side,
                target=TARGETS[device.type] if compiled else None,
                agrees=agrees,
                device=device.type,
                versions=versions,
            ).print()


def trainer(env: TrainingMarket, table: Tensor, compiled: bool) -> Callable[[], object]:
    """Runs of the on-policy loop with one agent, on a GPU with ``device.capture``."""
    agent = PPO(observation_dim=FEATURES + env.private_dim, action_dim=1, device=env.device, **SETTINGS)
    if compiled:
        agent.fuse()
    generator = torch.Generator(env.device).manual_seed(1)

    def observe(t: Tensor, private: Tensor) -> Tensor:
        return torch.cat((table.index_select(0, t), private), dim=-1)

    learner = Learner(agent, observe)
    graphs = CudaGraphs(generator) if env.device.type == "cuda" else None
    return lambda: train_on_policy(
        agent,
        env=env,
        observe=observe,
        learn=CapturedLearner(learner, graphs) if graphs else learner,
        graphs=graphs,
        total_env_steps=ROLLOUTS * ROLLOUT_STEPS * NUM_ENVS,
        learning_rate_schedule="constant",
        rollout_steps=ROLLOUT_STEPS,
        epochs=EPOCHS,
        batch_size=BATCH,
        validation_checks=1,
        generator=generator,
        session=no_checkpoints().session("speed", generator),
        hooks=Hooks(check=lambda _: None, skip=lambda _: None, advance=lambda _: None, metrics=lambda *_: None),
    )


def same_losses(theirs: dict[str, float], arrays: dict[str, Any], compiled: bool) -> bool:
    """Both losses of the peer's minibatch with its weights in our networks.

    It scores the normal variable, we its tanh: the density of the tanh cancels in the ratio. Compiled, losses and
    gradients are also those of eager.
    """
    values = {key: torch.as_tensor(value) for key, value in arrays.items()}
    agent = PPO(observation_dim=values["observation"].shape[1], action_dim=1)

    def layers(trunk: str, head: str) -> dict[str, Tensor]:
        names = {"0": f"mlp_extractor.{trunk}.0", "2": f"mlp_extractor.{trunk}.2", "4": head}
        return {
            f"{ours}.{part}": values[f"weight:{name}.{part}"]
            for ours, name in names.items()
            for part in ("weight", "bias")
        }

    agent.policy.get_submodule("mean").load_state_dict(layers("policy_net", "action_net"))
    agent.critic.load_state_dict(layers("value_net", "value_net"))
    agent.policy.get_parameter("log_std").data.copy_(values["weight:log_std"])
    raw = values["action"]
    fields = {key: values[key] for key in ("observation", "advantage", "value_target")}
    batch = TensorDict(fields | {"raw": raw, "log_prob": values["log_prob"] - tanh_log_det(raw)}, batch_size=[len(raw)])
    batch, plain = agent.prepare(batch), copy.deepcopy(agent)
    if compiled:
        agent.fuse()
    metrics = agent.backward(batch)
    pairs = ((metrics["loss_actor"], theirs["actor"]), (metrics["loss_critic"], theirs["critic"]))
    as_theirs = all(abs(float(mine) - other) <= 1e-5 * max(1.0, abs(other)) for mine, other in pairs)
    return as_theirs and gradients_agree(plain, agent, batch)
