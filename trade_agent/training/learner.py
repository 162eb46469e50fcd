"""One gradient step at a time, on minibatches that do not hold their observations yet."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.base import Agent, transition_batch
from trade_agent.agents.replay import Transitions
from trade_agent.training.memory import accumulate

Observe = Callable[[Tensor, Tensor], Tensor]  # bar index [B], private state [B, K] -> observation [B, O]


class Learner:
    """Gradient steps of an agent, whose observations are made by `observe` as late as possible.

    A minibatch that does not fit memory is taken in parts (`trade_agent.training.memory`): what is drawn for it, and
    what is a mean over it, belongs to the whole, so the gradient is the same up to rounding.
    """

    def __init__(self, agent: Agent, observe: Observe) -> None:
        self.agent, self.observe = agent, observe
        self.rows: int | None = None  # that fit memory at once; None: the whole minibatch

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step on a minibatch of `RolloutBuffer.minibatches` or of `minibatch`. Returns its metrics."""
        metrics = self.update(batch)
        self.count()
        return metrics

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """The step without `count`: it changes the tensors of `changed`, in place, and the gradients."""
        batch = self.prepare(batch)
        self.clear()

        def backward(part: TensorDict) -> dict[str, Tensor]:
            return self.backward(observed(part, self.observe), share=len(part) / len(batch))

        shares, self.rows = accumulate(batch, backward, size=self.rows, clear=self.clear, together=self.agent.copies)
        return self.step(shares[0] if len(shares) == 1 else added(shares))

    def prepare(self, batch: TensorDict) -> TensorDict:
        return self.agent.prepare(batch)

    def clear(self) -> None:
        # None, not zero: Adam leaves alone what has no gradient, as the actor of TD3 in every second update.
        self.agent.optimizer.zero_grad(set_to_none=True)

    def backward(self, batch: TensorDict, *, share: float) -> dict[str, Tensor]:
        return self.agent.backward(batch, share=share)

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.agent.step(metrics)

    @property
    def turn(self) -> Hashable:
        """What the operations of the update under way depend on, beside the shape of its minibatch."""
        return self.agent.turn

    def count(self) -> None:
        """Take down that an update was made."""
        self.agent.count()

    def changed(self) -> list[Tensor]:
        """All tensors that updates change; those of an optimizer are there after the first one."""
        return tensors_of([self.agent.state_dict(), self.agent.optimizer_state()])


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def added(shares: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of a minibatch from those of its parts."""
    return {name: torch.stack([share[name] for share in shares]).sum() for name in shares[0]}


def minibatch(sample: Transitions) -> TensorDict:
    """What `ReplayBuffer.sample` drew, as a minibatch without observations."""
    return TensorDict(sample._replace(t=sample.t.long())._asdict(), batch_size=[len(sample.t)])


def observed(batch: TensorDict, observe: Observe) -> TensorDict:
    """A minibatch with its observations, in the layout of the agents.

    The next observation belongs to the target: no gradient runs through it.
    """
    if "next_private" not in batch.keys():  # noqa: SIM118  a TensorDict
        batch = batch.copy()
        batch["observation"] = observe(batch["t"].long(), batch["private"])
        return batch
    fields = dict(batch.items())
    steps = fields.pop("steps")
    with torch.no_grad():
        following = observe(fields["t"] + steps, fields.pop("next_private"))
    return transition_batch(
        observation=observe(fields["t"], fields.pop("private")),
        action=fields.pop("action"),
        reward=fields.pop("reward"),
        next_observation=following,
        terminated=fields.pop("terminated"),
        steps=steps,
        **fields,  # the bar, and what the agent prepared
    )
