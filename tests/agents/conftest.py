import pytest
import torch

from trade_agent.agents.base import transition_batch


@pytest.fixture
def transitions():
    """A batch in the TorchRL layout: 32 rows, 5 observations, 2 actions, some rows terminated."""

    def make(rows=32, observation_dim=5, action_dim=2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return transition_batch(
            observation=torch.randn(rows, observation_dim, generator=generator),
            action=torch.rand(rows, action_dim, generator=generator) * 2.0 - 1.0,
            reward=torch.randn(rows, generator=generator),
            next_observation=torch.randn(rows, observation_dim, generator=generator),
            terminated=torch.rand(rows, generator=generator) < 0.3,
        )

    return make
