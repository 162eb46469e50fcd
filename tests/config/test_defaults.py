"""Defaults that papers and practice prescribe, literally: elsewhere the config is compared with the code alone."""

from typing import Any

import pytest

from trade_agent.config.load import compose_config, load_config

EVERY_AGENT = {
    "gamma": 0.99,
    "learning_rate": 3e-4,
    "learning_rate_schedule": "constant",
    "normalise_observation": False,
    "normalise_reward": False,
}
OFF_POLICY = EVERY_AGENT | {
    "critic_learning_rate": 3e-4,
    "tau": 0.005,
    "n_step": 1,
    "warmup_env_steps": 1000,
    "activation": "relu",
}
AGENTS = {
    "ppo": EVERY_AGENT
    | {
        "policy": "gaussian",
        "activation": "tanh",
        "clip_epsilon": 0.2,
        "gae_lambda": 0.95,
        "entropy_coefficient": 0.0,
        "value_coefficient": 0.5,
        "max_grad_norm": 0.5,
    },
    "sac": OFF_POLICY | {"target_entropy": None, "alpha_learning_rate": 3e-4},
    "td3": OFF_POLICY | {"exploration_noise": 0.1, "target_noise": 0.2, "target_noise_clip": 0.5, "policy_delay": 2},
}
MARKET = {
    "fill": "next_open",
    "latency_bars": 0,
    "sizing": "equity",
    "reward": "log_return",
    "max_leverage": 1.0,
    "max_weight": 1.0,
    "allow_short": True,
    "no_trade_band": 0.0,
    "commission_bps": 1.0,
    "half_spread_bps": 1.0,
    "slippage_bps": 1.0,
    "borrow_rate": 0.01,
    "financing_rate": 0.03,
}


def of(config: Any, prescribed: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(config, key) for key in prescribed}


@pytest.mark.parametrize("name", list(AGENTS))
def test_an_agent_has_the_settings_of_its_paper(name: str) -> None:
    assert of(load_config(compose_config(["stage=rl", f"model={name}"])).model, AGENTS[name]) == AGENTS[name]


def test_the_market_fills_at_the_next_open_and_charges_costs() -> None:
    assert of(load_config(compose_config([])).env, MARKET) == MARKET
