"""One gradient step at a time, on minibatches that do not hold their observations yet."""

from collections.abc import Callable

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
        batch = self.prepare(batch)
        self.clear()

        def backward(part: TensorDict) -> dict[str, Tensor]:
            return self.backward(observed(part, self.observe), share=len(part) / len(batch))

        shares, self.rows = accumulate(batch, backward, size=self.rows, clear=self.clear)
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
    with torch.no_grad():
        following = observe(batch["t"] + batch["steps"], batch["next_private"])
    whole = transition_batch(
        observation=observe(batch["t"], batch["private"]),
        action=batch["action"],
        reward=batch["reward"],
        next_observation=following,
        terminated=batch["terminated"],
        steps=batch["steps"],
    )
    for name in batch.keys() - {"action", "reward", "terminated", "steps", "private", "next_private"}:
        whole[name] = batch[name]  # the bar, and what the agent prepared
    return whole
