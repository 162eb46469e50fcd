"""The table of agents, and the way back from a stored spec to an agent."""

from typing import Any

import torch

from trade_agent.agents.ppo import PPO
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3
from trade_agent.errors import ConfigError

AGENT_BUILDERS: dict[str, type[PPO] | type[SAC] | type[TD3]] = {"ppo": PPO, "sac": SAC, "td3": TD3}


def agent_from_spec(spec: dict[str, Any], *, device: torch.device | str = "cpu") -> PPO | SAC | TD3:
    """A new agent with the settings of ``spec`` ({"name": ..., **constructor arguments}) and fresh weights.

    Raises ConfigError for a name that is not in AGENT_BUILDERS or arguments that the agent does not take.
    """
    arguments = {key: value for key, value in spec.items() if key != "name"}
    name = spec.get("name")
    if name not in AGENT_BUILDERS:
        raise ConfigError(f"agent {name!r} is unknown", f"choose one of {', '.join(AGENT_BUILDERS)}")
    try:
        return AGENT_BUILDERS[name](device=device, **arguments)
    except TypeError as error:
        raise ConfigError(
            f"the spec of agent {name!r} does not fit: {error}", "use the version that wrote it"
        ) from error
