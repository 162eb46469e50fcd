"""G10: the TD3 update; the actor and the targets take their turn in every second one."""

import torch

from benchmarks.speed.off_policy import FEATURES, HIDDEN, PRIVATE, measure_updates
from trade_agent.agents.td3 import TD3
from trade_agent.agents.torchrl_modules import td3_loss


def measure(repeats: int, device: torch.device) -> None:
    torch.manual_seed(0)
    targets = {"cpu": (1.4, None), "cuda": (15.0, None)}[device.type]
    agent = TD3(observation_dim=FEATURES + PRIVATE, action_dim=1, hidden_dims=HIDDEN, max_grad_norm=None, device=device)
    measure_updates("G10 TD3 update", agent, td3_loss(agent), targets=targets, repeats=repeats, device=device)
