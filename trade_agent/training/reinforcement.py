"""The two loops that train an agent: on-policy (PPO) and off-policy (SAC, TD3).

Shapes: N environments, K private state, A action dimensions, O observation. Buffers hold the bar index and the private
state (the account), never the observation: `observe` encodes the bar when it is needed, from a resident table (frozen
forecaster) or through the network that is being trained (hybrid).

Of a stack of agents (agents/copies.py) N is the number of all environments, which take turns; all budgets and counts
are those of one agent.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.base import Agent
from trade_agent.agents.n_step import NStepWindow
from trade_agent.agents.ppo import PPO
from trade_agent.agents.processes import Processes
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.envs.batched import BatchedEnv
from trade_agent.errors import TrainingDivergedError
from trade_agent.training.checkpoint import Session
from trade_agent.training.graphs import Graphs
from trade_agent.training.interaction import make_interaction
from trade_agent.training.learner import Observe, minibatch
from trade_agent.training.memory import in_parts

Learn = Callable[[TensorDict], dict[str, Tensor]]  # one gradient step on a minibatch, see `Learner`
METRICS_EVERY = 50  # updates between two looks at the metrics, each of which waits for the device


@dataclass(slots=True)
class Best:
    """Keeps the state with the highest validation score."""

    score: float = -math.inf
    state: dict[str, Any] | None = None
    env_steps: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "state": self.state, "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.state, self.env_steps = state["score"], state["state"], state["env_steps"]

    def consider(self, score: float, state: Callable[[], dict[str, Any]], env_steps: int) -> None:
        if score > self.score:
            self.score, self.env_steps = score, env_steps
            self.state = copy_state(state())


def copy_state(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested state dict that later training does not change."""
    return {
        key: copy_state(value) if isinstance(value, dict) else value.clone() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


class Contest:
    """Keeps the best state of each of the agents that learn side by side. The best of these states is the winner."""

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents, self.bests = agents, [Best() for _ in agents]

    @property
    def winner(self) -> Best:
        return max(self.bests, key=lambda best: best.score)

    def consider(self, scores: Sequence[float], env_steps: int) -> None:
        """The validation score of every agent as it stands."""
        for best, agent, score in zip(self.bests, self.agents, scores, strict=True):
            best.consider(score, agent.state_dict, env_steps)

    def spread(self) -> dict[str, Any]:
        """How much is chance: the best score of each agent, their mean and standard deviation. Empty for one agent."""
        scores = [best.score for best in self.bests]
        if len(scores) == 1:
            return {}
        return {"scores": scores, "mean": statistics.fmean(scores), "std": statistics.stdev(scores)}

    def state_dict(self) -> dict[str, Any]:
        return {"bests": [best.state_dict() for best in self.bests]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for best, stored in zip(self.bests, state["bests"], strict=True):
            best.load_state_dict(stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a loop calls back: `check(env_steps)` after each part of the budget, `skip` what a checkpoint holds and
    `advance` for the progress bar."""

    check: Callable[[int], None]
    skip: Callable[[int], None]
    advance: Callable[[int], None]
    metrics: Callable[[int, dict[str, float]], None]


class LearningRates:
    """Rates of an optimizer over a run, ``factor`` times what they are: ``constant``, or ``linear`` down to zero.

    Those of a capturable optimizer lie on its device: a number would be part of a CUDA graph for good.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: str, factor: float) -> None:
        self.optimizer, self.linear = optimizer, schedule == "linear"
        self.initial = [float(group["lr"]) * factor for group in optimizer.param_groups]
        self.on_device = [
            torch.tensor(rate, device=group["params"][0].device) if group["capturable"] else None
            for rate, group in zip(self.initial, optimizer.param_groups, strict=True)
        ]

    def set(self, done: float) -> None:
        """Before the updates of a round; ``done`` is the fraction of the budget that earlier rounds have used."""
        for group, initial, on_device in zip(self.optimizer.param_groups, self.initial, self.on_device, strict=True):
            rate = initial * (1.0 - done) if self.linear else initial
            # A checkpoint brings tensors of its own: this one takes their place again.
            group["lr"] = rate if on_device is None else on_device.fill_(rate)


def keep_agent(session: Session, agent: Agent) -> None:
    """Make all of an agent that training changes part of the checkpoints."""

    def get() -> dict[str, Any]:
        return {
            "networks": agent.state_dict(),
            "optimizer": agent.optimizer_state(),
            "running_returns": agent.reward_normaliser.running_returns,
        }

    def put(state: dict[str, Any]) -> None:
        agent.load_state_dict(state["networks"])
        agent.load_optimizer_state(state["optimizer"])
        agent.reward_normaliser.running_returns = state["running_returns"]

    session.keep("agent", get, put)


def train_on_policy(
    agent: PPO,
    *,
    env: BatchedEnv,
    observe: Observe,
    learn: Learn,
    total_env_steps: int,
    learning_rate_schedule: str,
    rollout_steps: int,
    epochs: int,
    batch_size: int,
    validation_checks: int,
    generator: torch.Generator,
    hooks: Hooks,
    session: Session,
    graphs: Graphs | None = None,
) -> int:
    """Collect a rollout, estimate advantages, go over it `epochs` times; returns the env steps that were made.

    Takes up the newest checkpoint of `session`, and has a boundary after each round.

    Observations are normalised alike throughout a round, and take part in the statistics at its end: the first update
    must find the probabilities with which the actions were drawn.
    graphs: where the steps are captured.
    """
    buffer = RolloutBuffer(
        num_steps=rollout_steps,
        num_envs=env.num_envs,
        private_dim=env.private_dim,
        action_dim=env.action_dim,
        copies=agent.copies,
        device=env.device,
    )
    num_envs = env.num_envs // agent.copies * agent.processes.size
    rounds = math.ceil(total_env_steps / (rollout_steps * num_envs))
    rates = LearningRates(agent.optimizer, learning_rate_schedule, session.rate_factor)
    done = {"rounds": 0}
    keep_agent(session, agent)
    session.keep("env", env.state_dict, env.load_state_dict)
    session.keep("loop", lambda: dict(done), done.update)
    session.restore()
    interact = make_interaction(agent, env, observe, generator=generator, graphs=graphs)
    env_steps = done["rounds"] * rollout_steps * num_envs
    hooks.skip(env_steps)
    for index in range(done["rounds"], rounds):
        rates.set(index / rounds)
        buffer.clear()
        while not buffer.full:
            action, seen = interact(False)
            buffer.add(
                t=seen.t,
                private=seen.private,
                raw=action.raw,
                log_prob=action.log_prob,
                reward=seen.reward,
                terminated=seen.terminated,
                truncated=seen.truncated,
                next_private=seen.next_private,
            )
            hooks.advance(num_envs)
        env_steps += rollout_steps * num_envs
        buffer.reward = agent.reward_normaliser(buffer.reward)
        value, next_value = _values(agent, buffer, observe)
        buffer.finish(value=value, next_value=next_value, gamma=agent.gamma, gae_lambda=agent.gae_lambda)
        for _ in range(epochs):
            for batch in buffer.minibatches(batch_size, generator):
                metrics = learn(batch)
        if agent.observation_normaliser.enabled:
            with torch.no_grad():
                seen_observations = observe(buffer.t.flatten().long(), buffer.private.flatten(0, 1))
            agent.observation_normaliser.update(seen_observations)
        hand_on(metrics, env_steps, hooks, agent.processes)
        checked = _due(index, rounds, validation_checks)
        if checked:
            hooks.check(env_steps)
        done["rounds"] = index + 1
        session.boundary(due=checked)
    return env_steps


@torch.no_grad()
def _values(agent: PPO, buffer: RolloutBuffer, observe: Observe) -> tuple[Tensor, Tensor]:
    """V of every observation of a rollout and of the one after it, [S, N] each."""
    shape = buffer.t.shape
    t = buffer.t.flatten().long()

    def values(t: Tensor, private: Tensor) -> Tensor:
        def of(size: int) -> Tensor:
            parts = zip(t.split(size), private.flatten(0, 1).split(size), strict=True)
            return torch.cat([agent.value(observe(*part)) for part in parts])

        return in_parts(of, size=len(t), together=agent.copies).view(shape)

    return values(t, buffer.private), values(t + 1, buffer.next_private)


def train_off_policy(
    agent: Agent,
    *,
    env: BatchedEnv,
    replay: ReplayBuffer,
    observe: Observe,
    learn: Learn,
    total_env_steps: int,
    learning_rate_schedule: str,
    n_step: int,
    warmup_env_steps: int,
    random_warmup: bool,
    env_steps_per_update: int,
    batch_size: int,
    validation_checks: int,
    generator: torch.Generator,
    hooks: Hooks,
    session: Session,
    graphs: Graphs | None = None,
) -> int:
    """Act, store, learn; uniformly random actions first unless the agent is trained already. Returns env steps.

    Takes up the newest checkpoint of `session`, and has a boundary after each step of the environments.

    What is normalised is stored as it was seen, and normalised by the statistics of the day when it is learned from.
    graphs: where the steps are captured.
    """
    num_envs = env.num_envs // agent.copies * agent.processes.size
    rounds = math.ceil(total_env_steps / num_envs)
    rates = LearningRates(agent.optimizer, learning_rate_schedule, session.rate_factor)
    window = NStepWindow(n_step, agent.gamma)
    metrics: dict[str, Tensor] = {}
    done = {"rounds": 0, "updates": 0, "owed": 0.0}  # owed: updates that the steps so far call for
    keep_agent(session, agent)
    session.keep("env", env.state_dict, env.load_state_dict)
    session.keep("replay", replay.state_dict, replay.load_state_dict)
    session.keep("window", window.state_dict, window.load_state_dict)
    session.keep("loop", lambda: dict(done), done.update)
    session.keep("metrics", lambda: dict(metrics), metrics.update)
    session.restore()
    interact = make_interaction(agent, env, observe, generator=generator, graphs=graphs)
    env_steps = int(done["rounds"]) * num_envs
    hooks.skip(env_steps)
    for index in range(int(done["rounds"]), rounds):
        env_steps = (index + 1) * num_envs
        action, seen = interact(random_warmup and env_steps <= warmup_env_steps)
        step = Transitions(seen.t, seen.private, action.action, seen.reward, seen.terminated, seen.next_private)
        transitions = window.add(step, seen.truncated)
        if transitions is not None:
            replay.extend(transitions)
        hooks.advance(num_envs)
        if env_steps > warmup_env_steps and len(replay):
            rates.set(index / rounds)
            done["owed"] += num_envs / env_steps_per_update
            while done["owed"] >= 1.0:
                metrics.update(learn(minibatch(replay.sample(batch_size, generator))))
                done["owed"], done["updates"] = done["owed"] - 1.0, done["updates"] + 1
                if done["updates"] % METRICS_EVERY == 0:
                    hand_on(metrics, env_steps, hooks, agent.processes)
        checked = _due(index, rounds, validation_checks)
        if checked:
            hooks.check(env_steps)
        done["rounds"] = index + 1
        session.boundary(due=checked)
    if done["updates"] % METRICS_EVERY:
        hand_on(metrics, env_steps, hooks, agent.processes)
    return rounds * num_envs


def _due(index: int, rounds: int, checks: int) -> bool:
    """True `checks` times over the rounds, evenly spread, and always at the last one."""
    return (index + 1) * checks // rounds > index * checks // rounds


def hand_on(metrics: dict[str, Tensor], env_steps: int, hooks: Hooks, processes: Processes) -> None:
    """Give the metrics, averaged over the processes, to the hook as numbers, then check them: who watches a run wants
    to see what ended it."""
    together = processes.mean(torch.stack(list(metrics.values())))
    values = dict(zip(metrics, together.tolist(), strict=True))  # one wait for the device, not one a metric
    hooks.metrics(env_steps, values)
    finite(values, env_steps)


def finite(metrics: dict[str, float], env_steps: int) -> None:
    """Raises TrainingDivergedError naming the first metric that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"{name} is {value} after {env_steps} environment steps",
                "lower model.learning_rate or model.reward_scale",
            )
