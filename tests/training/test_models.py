"""Folds of a forecaster on the bars of another run, and agents as their config describes them."""

from typing import Any

import numpy as np
import pytest
import torch

from trade_agent.agents.builders import agent_from_spec
from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import AgentModel
from trade_agent.envs.rules import MarketRules
from trade_agent.errors import ConfigError
from trade_agent.training.models import agent_spec, folds_from_state, folds_to_state
from trade_agent.training.supervised import Fold

DAYS = np.arange("2020-01-01", "2020-03-01", dtype="datetime64[D]").astype("datetime64[ns]")


def state_of(*bounds: tuple[int, int]) -> dict:
    folds = [Fold(start, stop, {}, torch.eye(1), torch.zeros(1)) for start, stop in bounds]
    return {"symbols": ["A"], "folds": folds_to_state(folds, DAYS)}


def rows_of(state: dict, timestamps: np.ndarray, symbols: tuple[str, ...] = ("A",), first_row: int = 0) -> list:
    return [(fold.start, fold.stop) for fold in folds_from_state(state, symbols, timestamps, first_row)]


def test_folds_keep_their_rows_on_the_same_bars() -> None:
    assert rows_of(state_of((10, 20), (20, 35)), DAYS) == [(10, 20), (20, 35)]


def test_folds_keep_their_dates_on_bars_that_start_later() -> None:
    assert rows_of(state_of((10, 20), (20, 35)), DAYS[15:]) == [(0, 5), (5, 20)]
    assert rows_of(state_of((10, 20), (20, 35)), DAYS[15:], first_row=8) == [(8, 20)]


def test_no_folds_for_other_symbols_or_other_years() -> None:
    assert rows_of(state_of((10, 20)), DAYS, symbols=("B",)) == []
    assert rows_of(state_of((10, 20)), DAYS + np.timedelta64(900, "D")) == []


COMMON = {
    "gamma": 0.5,
    "activation": "elu",
    "layer_norm": True,
    "max_grad_norm": 0.7,
    "normalise_observation": True,
    "normalise_reward": True,
}
OF_PPO = {"initial_log_std": -1.5, "gae_lambda": 0.6, "value_coefficient": 0.4, "entropy_coefficient": 0.02}
OF_CRITICS = {"tau": 0.03, "critic_learning_rate": 2e-3}
OF_SAC = {"alpha_learning_rate": 3e-3, "initial_alpha": 0.3, "target_entropy": -4.0}
OF_TD3 = {"exploration_noise": 0.3, "target_noise": 0.4, "target_noise_clip": 0.6, "policy_delay": 3}
RENAMED = {"clip_epsilon": "clip", "hidden_sizes": "hidden_dims", "learning_rate": "actor_learning_rate"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ppo", COMMON | OF_PPO | {"clip_epsilon": 0.3, "hidden_sizes": [8]}),
        ("sac", COMMON | OF_CRITICS | OF_SAC | {"learning_rate": 1e-3}),
        ("td3", COMMON | OF_CRITICS | OF_TD3 | {"learning_rate": 1e-3}),
    ],
)
def test_every_setting_of_an_agent_reaches_it(name: str, settings: dict[str, Any]) -> None:
    overrides = [f"model.{key}={value}" for key, value in settings.items()]
    model = load_config(compose_config(["stage=rl", f"model={name}", *overrides])).model
    assert isinstance(model, AgentModel)
    spec = agent_spec(model, observation_dim=5, action_dim=1)
    assert {key: spec[RENAMED.get(key, key)] for key in settings} == settings


@pytest.mark.parametrize("name", ["ppo", "sac", "td3"])
def test_gradients_need_not_be_clipped(name: str) -> None:
    model = load_config(compose_config(["stage=rl", f"model={name}", "model.max_grad_norm=null"])).model
    assert isinstance(model, AgentModel)
    agent = agent_from_spec(agent_spec(model, observation_dim=5, action_dim=1), device=torch.device("cpu"))
    assert agent.max_grad_norm is None
    with pytest.raises(ConfigError, match="learning_rate"):
        load_config(compose_config(["stage=rl", f"model={name}", "model.learning_rate=null"]))


def test_positions_are_weights_in_a_market_and_actions_where_there_is_none() -> None:
    overrides = ["stage=rl", "model=ppo", "model.policy=categorical", "model.positions=[0,0.5,1]"]
    model = load_config(compose_config(overrides)).model
    assert isinstance(model, AgentModel)
    long_only = MarketRules(allow_short=False)
    assert agent_spec(model, observation_dim=5, action_dim=1, rules=long_only)["actions"] == [-1.0, 0.0, 1.0]
    assert agent_spec(model, observation_dim=5, action_dim=1)["actions"] == [0.0, 0.5, 1.0]
