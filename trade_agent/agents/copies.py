"""Agents of one configuration that learn side by side in one batch, each from its own rows and by its own chances.

A stack of S agents is an agent whose parameters, buffers and moments of Adam are [S, ...]. What an algorithm does to
rows (act, value, prepare, objective) runs under ``torch.vmap`` over the stack, so there is one product for all agents
in place of S; what it does to parameters (a step of Adam, a soft update) works element by element as it stands. So no
agent sees anything of another one.

Rows take turns: in whatever a stack reads or returns, row r belongs to agent r mod S. Metrics are means over the
agents: when one of them diverges, training goes back to the last checkpoint for all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call

from trade_agent.agents.base import Action, Agent
from trade_agent.agents.builders import agent_from_spec
from trade_agent.agents.ppo import PPO
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3


class Copies(nn.Module):
    """What stands before an algorithm among the bases of a stack. ``members`` are ordinary agents that share their
    memory with it: each is what a stack knows of one of its agents, and is there to act, not to learn."""

    members: list[PPO | SAC | TD3]
    copies: int

    def hold(self, members: Sequence[PPO | SAC | TD3]) -> None:
        """Take over the weights of ``members``, all of the stack's own spec."""
        self.members, self.copies = list(members), len(members)
        theirs = [_tensors(member) for member in members]
        for name, tensor in _tensors(self).items():
            tensor.data = torch.stack([each[name].data for each in theirs])
            for each, part in zip(theirs, tensor.data.unbind(), strict=True):
                each[name].data = part

    def forward(self, work: Callable[[Any], Any], rows: Any) -> Any:
        """``work(rows)`` while the tensors of this module are those of one agent."""
        return work(rows)

    def act(self, observation: Tensor, *, deterministic: bool) -> Action:
        act = partial(super().act, deterministic=deterministic)  # type: ignore[misc]
        return Action(*(value.flatten(0, 1) for value in self._each(act, self._apart(observation), out_dims=1)))

    def prepare(self, batch: TensorDict) -> TensorDict:
        prepared = self._each(super().prepare, self._apart(batch).to_dict(), out_dims=1)  # type: ignore[misc]
        return TensorDict(prepared, batch_size=[len(batch) // self.copies, self.copies]).flatten(0, 1)

    def objective(self, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the agents are added: each depends on its own parameters alone."""
        rows = self._apart(batch).to_dict()
        losses, metrics = self._each(super().objective, rows, out_dims=0)  # type: ignore[misc]
        return losses.sum(), {name: values.mean() for name, values in metrics.items()}

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: values.mean() for name, values in super().step(metrics).items()}  # type: ignore[misc]

    def _apart(self, rows: Any) -> Any:
        """[B * S, ...] -> [B, S, ...]."""
        return rows.unflatten(0, (-1, self.copies))

    def _each(self, work: Callable[[Any], Any], rows: Any, *, out_dims: int) -> Any:
        """``work`` of every agent on its own rows [B, S, ...]; what is drawn is drawn for each."""

        def of_one(tensors: dict[str, Tensor], rows: Any) -> Any:
            return functional_call(self, tensors, (work, rows))

        each = torch.vmap(of_one, in_dims=(0, 1), out_dims=out_dims, randomness="different")
        return each(_tensors(self), rows)


class PPOCopies(Copies, PPO):
    """A stack of PPO agents."""

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        """[B * S, O] -> [B * S]."""
        return self._each(super().value, self._apart(observation), out_dims=1).flatten(0, 1)


class SACCopies(Copies, SAC):
    """A stack of SAC agents."""


class TD3Copies(Copies, TD3):
    """A stack of TD3 agents: their actors have their turn in the same updates."""


STACKS: dict[str, type[PPOCopies] | type[SACCopies] | type[TD3Copies]] = {
    "ppo": PPOCopies,
    "sac": SACCopies,
    "td3": TD3Copies,
}


def side_by_side(agents: Sequence[PPO | SAC | TD3]) -> PPOCopies | SACCopies | TD3Copies:
    """A stack that goes on from the weights of ``agents``, which are alike but for these and become its members.

    Their optimizers are left behind: the moments of Adam begin at zero.
    """
    spec = {key: value for key, value in agents[0].spec().items() if key != "name"}
    stack = STACKS[agents[0].name](device=next(agents[0].parameters()).device, **spec)
    stack.hold(agents)
    return stack


def agents_from_spec(spec: dict[str, Any], copies: int, *, device: torch.device | str = "cpu") -> Agent:
    """A new agent of ``spec``, or a stack of several with weights of their own; raises as ``agent_from_spec`` does."""
    agents = [agent_from_spec(spec, device=device) for _ in range(copies)]
    return agents[0] if copies == 1 else side_by_side(agents)


def members_of(agent: Agent) -> Sequence[Agent]:
    """The agents of a stack; of any other agent that itself."""
    return agent.members if isinstance(agent, Copies) else [agent]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved included."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
