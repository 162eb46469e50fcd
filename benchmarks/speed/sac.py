"""G9: the SAC update."""

import torch

from benchmarks.speed.off_policy import FEATURES, HIDDEN, PRIVATE, measure_updates
from trade_agent.agents.sac import SAC
from trade_agent.agents.torchrl_modules import sac_loss


def measure(repeats: int, device: torch.device) -> None:
    torch.manual_seed(0)
    targets = {"cpu": (1.4, 1.9), "cuda": (15.0, 10.0)}[device.type]
    agent = SAC(
        observation_dim=FEATURES + PRIVATE,
        action_dim=1,
        hidden_dims=HIDDEN,
        max_grad_norm=None,
        initial_alpha=1.0,
        device=device,
    )
    measure_updates("G9 SAC update", agent, sac_loss(agent), targets=targets, repeats=repeats, device=device)
