"""From bars to actions, nothing that comes after bar t reaches what is decided at its close."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from trade_agent.data.bars import Bars
from trade_agent.envs.series import MarketSeries
from trade_agent.evaluation.backtest import run_policy
from trade_agent.networks.encoders import WindowEncoder
from trade_agent.training import dataset as dataset_module
from trade_agent.training.dataset import causality_of, with_pipeline
from trade_agent.training.models import EnsemblePolicy, forecaster_from_state, policy_from_state


def other_future(bars: Bars, last: int) -> Bars:
    """The same bars up to `last`, and quite different ones after it: other prices, shapes and volume."""
    random = np.random.default_rng(0)
    later = (np.arange(bars.num_bars) > last)[:, None]
    changes = np.exp(random.normal(0.3, 0.3, (2, *bars.close.shape)))
    open_, close = np.where(later, np.stack((bars.open, bars.close)) * changes, np.stack((bars.open, bars.close)))
    high = np.where(later, np.maximum(open_, close) * 1.01, bars.high)
    low = np.where(later, np.minimum(open_, close) * 0.98, bars.low)
    volume = np.where(later, bars.volume * 7.0, bars.volume)
    return replace(bars, open=open_, high=high, low=low, close=close, volume=volume)


def features_of(trained: Any, bars: Bars) -> torch.Tensor:
    """Features [T, A, F] of `bars`, recomputed, with everything that was fitted left as it is."""
    values = np.array(trained.dataset.pipeline.transform(bars).values)
    values[: trained.dataset.first_row] = np.nan
    return torch.as_tensor(values)


def decisions(trained: Any, state: dict[str, Any], bars: Bars) -> tuple[np.ndarray, np.ndarray]:
    """Observations (of every member, and the weights of the gate) and actions at every test row."""
    policy = policy_from_state(state, features_of(trained, bars))
    members = policy.members if isinstance(policy, EnsemblePolicy) else [policy]
    seen: list[torch.Tensor] = []
    actions: list[torch.Tensor] = []

    def act(t: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        views = [member.observe(t, account) for member in members]
        if isinstance(policy, EnsemblePolicy) and policy.gate is not None:
            views.append(policy.gate.weights(policy.features.index_select(0, t)))
        seen.append(torch.cat(views, dim=-1))
        actions.append(policy(t, account))
        return actions[-1]

    rows = trained.dataset.split.test
    run_policy(MarketSeries.from_bars(bars), trained.dataset.rules, act, start=rows.start, end=rows.stop - 1)
    return torch.cat(seen).numpy(), torch.cat(actions).numpy()


def assert_only_the_future_differs(trained: Any, state: dict[str, Any], offset: int) -> None:
    bars, start = trained.dataset.bars, trained.dataset.split.test.start
    observed, acted = decisions(trained, state, bars)
    observed_other, acted_other = decisions(trained, state, other_future(bars, start + offset))
    known = offset + 1
    np.testing.assert_array_equal(observed_other[:known], observed[:known])
    np.testing.assert_array_equal(acted_other[:known], acted[:known])
    # The test would notice: the very next row is a different one.
    assert np.abs(observed_other[known] - observed[known]).max() > 1e-3
    assert np.abs(acted_other[known:] - acted[known:]).max() > 1e-6


MODELS = ["ppo@latest", "sac@latest", "td3@latest", "hybrid@latest", "ensemble@latest"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("offset", [0, 13])
def test_the_future_changes_no_observation_and_no_action(trained: Any, model: str, offset: int) -> None:
    assert_only_the_future_differs(trained, trained.manager.registry.load(model).state, offset)


@pytest.mark.parametrize("combiner", ["mean", "weighted", "vote", "gate"])
def test_no_combiner_sees_the_future(trained: Any, combiner: str) -> None:
    state = trained.manager.registry.load("ensemble@latest").state
    assert state["combiner"] == "gate"
    spread = state | {"combiner": combiner, "weights": torch.tensor([0.5, 0.3, 0.2])}
    assert_only_the_future_differs(trained, spread, 5)


def test_a_gate_that_chooses_does_not_see_the_future(trained: Any) -> None:
    """An untrained gate is the mean; this one follows its features."""
    state = copy.deepcopy(trained.manager.registry.load("ensemble@latest").state)
    generator = torch.Generator().manual_seed(0)
    for name, weights in state["gate"]["state"].items():
        state["gate"]["state"][name] = torch.randn(weights.shape, generator=generator)
    assert_only_the_future_differs(trained, state, 5)


@pytest.mark.parametrize("forecaster_of", ["hybrid@latest", "ppo@latest"])
def test_joint_training_encodes_windows_that_end_at_their_bar(trained: Any, forecaster_of: str) -> None:
    """The encoder that gradients go through, bit for bit, one bar at a time and for all rows at once."""
    state = trained.manager.registry.load(forecaster_of).state
    forecaster = forecaster_from_state(state["forecaster"], torch.device("cpu")).network
    bars, start = trained.dataset.bars, trained.dataset.split.train.start + forecaster.window_bars
    features = features_of(trained, bars)
    changed = features_of(trained, other_future(bars, start + 20))
    before, after = WindowEncoder(forecaster, features), WindowEncoder(forecaster, changed)
    t = torch.arange(start, start + 22)
    assert torch.equal(before(t)[:21], after(t)[:21])
    assert not torch.equal(before(t)[21], after(t)[21])
    for bar in (start, start + 20):
        assert torch.equal(before(torch.tensor([bar])), after(torch.tensor([bar])))


@pytest.mark.parametrize("model", ["ppo@latest", "hybrid@latest", "ensemble@latest"])
def test_a_policy_carries_nothing_from_one_episode_into_the_next(trained: Any, model: str) -> None:
    state, dataset = trained.manager.registry.load(model).state, trained.dataset
    features, rows = features_of(trained, dataset.bars), dataset.split.test
    used, fresh = policy_from_state(state, features), policy_from_state(state, features)
    market = dataset.series
    run_policy(market, dataset.rules, used, start=rows.start, end=rows.start + 30)
    second = run_policy(market, dataset.rules, used, start=rows.start + 20, end=rows.start + 50)
    alone = run_policy(market, dataset.rules, fresh, start=rows.start + 20, end=rows.start + 50)
    np.testing.assert_array_equal(second.targets, alone.targets)
    np.testing.assert_array_equal(second.equity, alone.equity)


def test_a_pipeline_that_looks_ahead_is_found_on_the_data_of_the_run_and_graded_f(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = trained.dataset
    assert dataset.causality.ok
    assert dataset.grade_inputs() == {"leaked": 0.0}
    transform = type(dataset.pipeline).transform

    def shifted(pipeline: Any, bars: Bars) -> Any:
        """Everything a bar too early."""
        table = transform(pipeline, bars)
        return replace(table, values=np.concatenate((table.values[1:], table.values[-1:])))

    monkeypatch.setattr(type(dataset.pipeline), "transform", shifted)
    leaking = with_pipeline(dataset, dataset.pipeline)
    assert len(leaking.causality.leaks) == len(leaking.causality.points) == 8
    assert leaking.grade_inputs() == {"leaked": 1.0}
    monkeypatch.setattr(dataset_module, "CAUSALITY_BARS", 100)
    of_the_last = with_pipeline(dataset, dataset.pipeline).causality
    assert len(of_the_last.leaks) == len(of_the_last.points) == 8
    assert set(of_the_last.points) <= set(range(dataset.first_row, dataset.first_row + 100))


PRICES_AND_VOLUME = ("open", "high", "low", "close", "volume")


@pytest.mark.parametrize("after_train", [0, 40])
def test_a_back_fill_of_a_gap_before_the_last_bars_is_found(
    trained: Any, after_train: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars, split, pipeline = trained.dataset.bars, trained.dataset.split, trained.dataset.pipeline
    gap = split.train.stop + after_train
    traded = np.arange(bars.num_bars)[:, None] != gap
    columns = {name: np.where(traded, getattr(bars, name), np.nan) for name in PRICES_AND_VOLUME}
    bars = replace(bars, tradable=traded, **columns)
    last_bars = bars.num_bars - gap - 1
    monkeypatch.setattr(dataset_module, "CAUSALITY_BARS", last_bars - 20)
    transform = type(pipeline).transform

    def back_filled(pipeline: Any, bars: Bars) -> Any:
        table = transform(pipeline, bars)
        return replace(table, values=pd.DataFrame(bars.close).bfill().to_numpy()[..., None])

    monkeypatch.setattr(type(pipeline), "transform", back_filled)
    found = causality_of(bars, pipeline, split)
    assert len(found.points) == 8
    assert not found.ok
