"""One step of an agent in its environments, as it is or replayed as a CUDA graph.

Shapes: N environments, A action dimensions.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.base import Action, Agent
from trade_agent.envs.batched import BatchedEnv, Experience, TrainingMarket
from trade_agent.training.graphs import Graphs, Replayed, Tensors
from trade_agent.training.learner import Observe, tensors_of
from trade_agent.training.memory import in_parts

Interact = Callable[[bool], tuple[Action, Experience]]


def make_interaction(
    agent: Agent, env: BatchedEnv, observe: Observe, *, generator: torch.Generator, graphs: Graphs | None
) -> Interact:
    """What makes a step. To be made when agent and environments are as they shall begin, from a checkpoint or new.

    graphs: where steps of the market are captured; other environments live on the CPU and cannot be.
    """
    interaction = Interaction(agent, env, observe, generator)
    if graphs is None or not isinstance(env, TrainingMarket):
        return interaction
    return CapturedInteraction(interaction, env, graphs)


class Interaction:
    """Observe, act, step; the statistics of what is normalised take part in it.

    Observations of an on-policy agent must be normalised alike throughout a rollout: they are left to its loop.
    """

    def __init__(self, agent: Agent, env: BatchedEnv, observe: Observe, generator: torch.Generator) -> None:
        self.agent, self.env, self.observe, self.generator = agent, env, observe, generator
        self.rows = env.num_envs  # of which the observations fit memory at once

    @torch.no_grad()
    def __call__(self, random: bool) -> tuple[Action, Experience]:
        """random: uniformly random actions in place of the agent's."""
        env = self.env
        observation = in_parts(self._observation, size=self.rows)
        if not self.agent.on_policy:
            self.agent.observation_normaliser.update(observation)
        if random:
            drawn = torch.rand((env.num_envs, env.action_dim), generator=self.generator, device=env.device)
            action = Action(drawn * 2.0 - 1.0, torch.zeros_like(drawn), drawn.new_zeros(env.num_envs))
        else:
            action = self.agent.act(observation, deterministic=False)
        seen = env.step(action.action)
        self.agent.reward_normaliser.update(seen.reward, seen.terminated | seen.truncated)
        return action, seen

    def _observation(self, rows: int) -> Tensor:
        """[N, O], made of so many rows at once."""
        self.rows, t, private = rows, self.env.t, self.env.private
        if rows >= len(t):
            return self.observe(t, private)
        return torch.cat([self.observe(*part) for part in zip(t.split(rows), private.split(rows), strict=True)])


class CapturedInteraction:
    """Stands for an `Interaction` in the market. Its accounts stay where they lie: a graph knows only this memory."""

    def __init__(self, interaction: Interaction, env: TrainingMarket, graphs: Graphs) -> None:
        self.interaction, self.env, self.agent = interaction, env, interaction.agent
        returns = self.agent.reward_normaliser
        if not isinstance(returns.running_returns, Tensor):
            returns.running_returns = torch.full((env.num_envs,), returns.running_returns, device=env.device)
        # Fields of new accounts share their memory.
        self._put({name: value.clone() for name, value in self._accounts().items()})
        self.replayed = Replayed(self._step, name="a step of the market", changed=self.changed, graphs=graphs)
        self.random = False

    def __call__(self, random: bool) -> tuple[Action, Experience]:
        self.random = random
        values = self.replayed(random, TensorDict())
        return (
            Action(*(values[name] for name in Action._fields)),
            Experience(*(values[name] for name in Experience._fields)),
        )

    def changed(self) -> list[Tensor]:
        return [*self._accounts().values(), *tensors_of(self.agent.state_dict())]

    def _step(self, nothing: TensorDict) -> Tensors:
        accounts = self._accounts()
        action, seen = self.interaction(self.random)
        results = {name: value.clone() for name, value in (action._asdict() | seen._asdict()).items()}
        for name, value in self._accounts().items():
            accounts[name].copy_(value)
        self._put(accounts)
        return results

    def _accounts(self) -> Tensors:
        returns = self.agent.reward_normaliser.running_returns
        assert isinstance(returns, Tensor)
        return self.env.state_dict() | {"running_returns": returns}

    def _put(self, accounts: Tensors) -> None:
        self.agent.reward_normaliser.running_returns = accounts["running_returns"]
        self.env.load_state_dict({name: value for name, value in accounts.items() if name != "running_returns"})
