"""Stable-Baselines3: gradient steps of SAC and TD3 on a filled replay buffer, and PPO on our gymnasium face."""

import time
from importlib.metadata import version

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from benchmarks.speed.peers.serve import serve

VERSIONS = {"stable-baselines3": version("stable-baselines3"), "torch": version("torch")}
torch.set_num_threads(1)


class Nothing(gymnasium.Env):
    """Only its spaces are looked at."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)


class State:
    model: SAC | TD3 | PPO
    rollout: int


# ------------------------------------------------------------------------------------------------ off-policy


def _off_policy(algorithm: str, arrays: dict[str, np.ndarray], hidden: list[int], **settings: object) -> SAC | TD3:
    rows, observation_dim = arrays["observation"].shape
    env = Nothing(observation_dim, arrays["action"].shape[1])
    model = {"sac": SAC, "td3": TD3}[algorithm](
        "MlpPolicy", env, policy_kwargs={"net_arch": hidden}, buffer_size=rows, device="cpu", seed=0, **settings
    )
    model.set_logger(configure(None, []))
    fields = ("observation", "next_observation", "action", "reward", "terminated")
    for row in zip(*(arrays[name] for name in fields), strict=True):
        model.replay_buffer.add(*(np.asarray(value)[None] for value in row), [{}])
    return model


def off_policy(algorithm: str, path: str, hidden: list[int]) -> dict[str, str]:
    """Fill the buffer with the transitions of an .npz."""
    State.model = _off_policy(algorithm, dict(np.load(path)), hidden)
    return VERSIONS


def updates(count: int, batch_size: int) -> float:
    started = time.process_time()
    State.model.train(gradient_steps=count, batch_size=batch_size)
    return time.process_time() - started


def losses(algorithm: str, path: str, hidden: list[int], weights: str) -> dict[str, float]:
    """Losses of one batch, the transitions of ``path``, with given weights, no learning and nothing drawn."""
    arrays = dict(np.load(path))
    quiet = {"ent_coef": 1e-8} if algorithm == "sac" else {"target_policy_noise": 0.0}
    model = _off_policy(algorithm, arrays, hidden, learning_rate=0.0, gamma=0.99, **quiet)
    model.policy.load_state_dict({key: torch.as_tensor(value) for key, value in np.load(weights).items()})
    fields = (torch.as_tensor(arrays[name]) for name in ("observation", "action", "next_observation"))
    flags = (torch.as_tensor(arrays[name]).float().unsqueeze(1) for name in ("terminated", "reward"))
    batch = ReplayBufferSamples(*fields, *flags)
    model.replay_buffer.sample = lambda *_, **__: batch
    model.train(gradient_steps=2, batch_size=len(arrays["reward"]))  # TD3 takes the actor's turn in the second one
    values = model.logger.name_to_value
    return {"actor": float(values["train/actor_loss"]), "critic": float(values["train/critic_loss"])}


# ------------------------------------------------------------------------------------------------ PPO


def ppo(path: str, num_envs: int, episode_bars: int, rollout_steps: int, settings: dict[str, object]) -> dict[str, str]:
    """PPO on single faces of our market, one after another, as ``make_vec_env`` builds them."""
    from trade_agent.envs.gymnasium_env import MarketGymEnv
    from trade_agent.envs.rules import MarketRules
    from trade_agent.envs.series import MarketSeries

    arrays = {key: torch.as_tensor(value) for key, value in np.load(path).items()}
    series = MarketSeries(arrays["open"], arrays["close"], torch.ones_like(arrays["close"], dtype=torch.bool))
    env = make_vec_env(
        lambda: MarketGymEnv(
            series=series,
            rules=MarketRules(),
            features=arrays["features"],
            rows=range(series.num_bars),
            episode_bars=episode_bars,
        ),
        n_envs=num_envs,
        seed=0,
    )
    State.model = PPO("MlpPolicy", env, n_steps=rollout_steps, device="cpu", seed=0, **settings)
    State.rollout = num_envs * rollout_steps
    return VERSIONS


def ppo_rollouts(count: int) -> float:
    """Seconds of ``count`` rollouts and what is learned from them."""
    started = time.process_time()
    State.model.learn(total_timesteps=count * State.rollout)
    return time.process_time() - started


def leak(
    path: str, rules: dict[str, object], rows: list[int], episode_bars: int, reward_scale: float, seed: int
) -> dict[str, str]:
    """PPO with its own defaults on the gymnasium face of a market; only the rewards are scaled."""
    from trade_agent.envs.gymnasium_env import MarketGymEnv
    from trade_agent.envs.rules import MarketRules
    from trade_agent.envs.series import MarketSeries

    arrays = {key: torch.as_tensor(value) for key, value in np.load(path).items()}
    env = MarketGymEnv(
        series=MarketSeries(arrays["open"], arrays["close"], torch.ones_like(arrays["close"], dtype=torch.bool)),
        rules=MarketRules(**rules),
        features=arrays["features"],
        rows=range(*rows),
        episode_bars=episode_bars,
    )
    scaled = gymnasium.wrappers.TransformReward(env, lambda reward: reward_scale * reward)
    State.model = PPO("MlpPolicy", scaled, device="cpu", seed=seed)
    return VERSIONS


def leak_steps(count: int, path: str) -> float:
    """Seconds of so many more steps; the policy's weights go to ``path`` as an .npz."""
    started = time.process_time()
    State.model.learn(total_timesteps=count, reset_num_timesteps=False)
    taken = time.process_time() - started
    np.savez(path, **{key: value.numpy() for key, value in State.model.policy.state_dict().items()})
    return taken


def ppo_losses(path: str) -> dict[str, float]:
    """Losses that PPO reports for one minibatch, and what went into it as an .npz: it learns nothing meanwhile."""
    model = State.model
    rate, epochs, size = model.lr_schedule, model.n_epochs, model.batch_size
    buffer = model.rollout_buffer
    model.lr_schedule, model.n_epochs, model.batch_size = (lambda _: 0.0), 1, State.rollout
    weights = {f"weight:{key}": value.numpy() for key, value in model.policy.state_dict().items()}
    # Old log probabilities off the present ones, so that the clip shows.
    rng = np.random.default_rng(0)
    buffer.log_probs = buffer.log_probs + rng.normal(0.0, 0.2, buffer.log_probs.shape).astype(np.float32)
    buffer.generator_ready = True
    np.savez(
        path,
        observation=buffer.observations,
        action=buffer.actions,
        log_prob=buffer.log_probs.reshape(-1),
        advantage=buffer.advantages.reshape(-1),
        value_target=buffer.returns.reshape(-1),
        **weights,
    )
    model.train()
    model.lr_schedule, model.n_epochs, model.batch_size = rate, epochs, size
    values = model.logger.name_to_value
    return {"actor": float(values["train/policy_gradient_loss"]), "critic": float(values["train/value_loss"])}


serve(
    off_policy=off_policy,
    updates=updates,
    losses=losses,
    ppo=ppo,
    ppo_rollouts=ppo_rollouts,
    ppo_losses=ppo_losses,
    leak=leak,
    leak_steps=leak_steps,
)
