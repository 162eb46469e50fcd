"""Returns over several steps for off-policy agents (Sutton and Barto 2018, section 7.1; uncorrected, as in Rainbow).

Shapes: N environments, K private state, A action dimensions.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from trade_agent.agents.replay import Transitions


class NStepWindow:
    """Makes transitions over up to ``n_step`` steps out of single ones.

    reward = r_t + gamma r_{t+1} + ... over k steps, and the next observation is that of bar t + k: k is ``n_step``, or
    less where the episode ends before, by termination or truncation. Every step starts exactly one transition, which
    is complete ``n_step`` - 1 steps later; those that are under way when a run ends are dropped. So there are N rows at
    a time whatever ends where, and nothing waits for the device.
    """

    def __init__(self, n_step: int, gamma: float) -> None:
        self.gamma = gamma
        self._steps: deque[tuple[Transitions, Tensor]] = deque(maxlen=n_step)

    def state_dict(self) -> dict[str, Any]:
        """The steps that are not complete yet, for resuming a run."""
        return {"steps": [[*step, done] for step, done in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps.clear()
        self._steps.extend((Transitions(*values[:-1]), values[-1]) for values in state["steps"])

    def add(self, step: Transitions, truncated: Tensor) -> Transitions | None:
        """One step of all environments, ``truncated`` [N]; returns the transitions that started ``n_step`` - 1 steps
        ago, None while there are none. The tensors of ``step`` must not be changed afterwards."""
        self._steps.append((step, step.terminated | truncated))
        if len(self._steps) < (self._steps.maxlen or 1):
            return None
        # From the last step backwards: what lies behind the end of an episode is another one's.
        reward, terminated, next_private = step.reward, step.terminated, step.next_private
        steps: Tensor | int = 1
        for earlier, done in list(self._steps)[-2::-1]:
            reward = earlier.reward + self.gamma * torch.where(done, 0.0, reward)
            terminated = torch.where(done, earlier.terminated, terminated)
            next_private = torch.where(done.unsqueeze(1), earlier.next_private, next_private)
            steps = torch.where(done, 1, 1 + steps)
        first, _ = self._steps[0]
        return Transitions(first.t, first.private, first.action, reward, terminated, next_private, steps)
