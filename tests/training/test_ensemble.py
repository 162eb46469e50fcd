"""What an ensemble makes of its members, and that a gate learns which of them to follow."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trade_agent.config.schema import EnsembleModel
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.evaluation.backtest import simulate
from trade_agent.networks.combiners import GateCombiner
from trade_agent.training.models import EnsemblePolicy, policy_from_state
from trade_agent.training.stages.ensemble import carried, held_returns, log_growth, member_actions, run, train_gate
from trade_agent.training.stages.trading import validation_sharpe, weighted_by_score

Member = Callable[[Tensor, Tensor], Tensor]
FEATURES = torch.tensor([[0.0], [1.0], [-1.0]]).unsqueeze(1)  # [T, A, F]


def constant(*action: float) -> Any:
    return lambda t, account: torch.tensor([action]).expand(len(t), -1)


def ensemble(combiner: str, weights: tuple[float, ...] = (1.0, 1.0, 1.0), gate: Any = None) -> EnsemblePolicy:
    members = [constant(0.9, -0.2), constant(0.3, -0.4), constant(-0.6, -0.9)]
    return EnsemblePolicy(
        members, combiner=combiner, weights=torch.tensor(weights), gate=gate, features=FEATURES, flat_action=0.0
    )


@pytest.mark.parametrize(
    ("combiner", "expected"),
    [
        ("mean", [0.2, -0.5]),
        ("weighted", [0.9 * 0.5 + 0.3 * 0.5, -0.3]),  # weights 2, 2, 0
        ("vote", [0.6, -0.5]),  # two members are long in the first asset, by 0.6 on average; all short in the second
    ],
)
def test_combiners_by_hand(combiner: str, expected: list[float]) -> None:
    policy = ensemble(combiner, (2.0, 2.0, 0.0))
    action = policy(torch.tensor([0, 2]), torch.zeros(2, 3))
    torch.testing.assert_close(action, torch.tensor([expected, expected]))


def test_the_gate_by_hand() -> None:
    gate = GateCombiner(feature_dim=1, num_members=3, hidden_dims=[])
    with torch.no_grad():
        gate.gate[1].weight.copy_(torch.tensor([[math.log(2.0)], [0.0], [0.0]]))  # type: ignore[operator]
    action = ensemble("gate", gate=gate)(torch.tensor([0, 1, 2]), torch.zeros(3, 3))
    # The first member weighs 1, 2 and 1/2 beside the two others.
    expected = [[0.2, -0.5], [(1.8 + 0.3 - 0.6) / 4, (-0.4 - 0.4 - 0.9) / 4], [(0.45 - 0.3) / 2.5, (-0.1 - 1.3) / 2.5]]
    torch.testing.assert_close(action, torch.tensor(expected))


def test_weights_by_score() -> None:
    assert weighted_by_score([1.0, 3.0, -2.0]).tolist() == [0.25, 0.75, 0.0]
    assert weighted_by_score([-1.0, math.nan]).tolist() == [0.5, 0.5]
    assert weighted_by_score([math.nan, 2.0]).tolist() == [0.0, 1.0]


def test_log_growth_by_hand() -> None:
    weights = torch.tensor([[0.5, 0.0], [-0.5, 0.5]], dtype=torch.float64)
    returns = torch.tensor([[0.10, 0.3], [0.02, -0.04]], dtype=torch.float64)
    # bought 0.5; then sold 1.0 of one and bought 0.5 of the other
    expected = (math.log(1 + 0.05 - 0.01 * 0.5) + math.log(1 - 0.01 - 0.02 - 0.01 * 1.5)) / 2
    assert float(log_growth(weights, returns, 0.01)) == pytest.approx(expected, rel=1e-12)
    ruin = log_growth(torch.tensor([[1.0]]), torch.tensor([[-3.0]]), 0.0)
    assert float(ruin) == pytest.approx(math.log(0.01), rel=1e-5)  # a loss of more than everything stays finite


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
@pytest.mark.parametrize("latency_bars", [0, 2])
def test_held_returns_are_what_a_single_order_earns(series: MarketSeries, fill: str, latency_bars: int) -> None:
    """One order for the whole equity, taken back at the next bar, in the real market and without costs."""
    rules = MarketRules(
        fill=fill, latency_bars=latency_bars, periods_per_year=252.0, commission_bps=0.0, half_spread_bps=0.0,
        slippage_bps=0.0, borrow_rate=0.0, financing_rate=0.0,
    )  # fmt: skip
    rows = range(10, 60)
    held = held_returns(series, rules, rows)
    assert len(held) == len(rows) - 1 - latency_bars - (fill != "same_close")
    for order in (0, 7, len(held) - 1):
        weights = np.zeros((len(rows) + 3, 1, 2))
        weights[order, 0, 1] = 1.0
        backtest = simulate(series, rules, weights, start=rows.start)[0]
        earned = backtest.equity[-1] / backtest.equity[0] - 1.0
        assert earned == pytest.approx(float(held[order, 1]), rel=1e-9)


@pytest.fixture
def two_regimes(trained: Any) -> Any:
    """A market whose open moves by 1 % in the direction of the only feature, from the next open on.

    The close of a bar is its open, so returns from close to close belong to the feature before and say nothing.
    """
    num_bars = trained.dataset.bars.num_bars
    random = np.random.default_rng(2)
    regime = random.choice([-1.0, 1.0], num_bars)
    log_open = np.zeros(num_bars)
    log_open[2:] = np.cumsum(0.01 * regime[: num_bars - 2])
    price = torch.tensor(100.0 * np.exp(log_open))[:, None]
    features = torch.tensor(regime, dtype=torch.float32).view(-1, 1, 1)
    tradable = torch.ones(num_bars, 1, dtype=torch.bool)
    market = MarketSeries(open=price, close=price, tradable=tradable)
    return replace(trained.dataset, series=market, features=features)


def test_the_gate_learns_which_member_is_right(trained: Any, two_regimes: Any, tmp_path: Path) -> None:
    config = trained.settings("stage=ensemble", "trainer.gate_epochs=60", "trainer.validation_checks=3")
    context = replace(trained.context(tmp_path, config), dataset=two_regimes)
    model = EnsembleModel(name="ensemble", combiner="gate", gate_hidden_sizes=[8], gate_learning_rate=0.05)
    long, short = constant(1.0), constant(-1.0)
    torch.manual_seed(0)
    gate, state, history = train_gate(context, model, [long, short], two_regimes.split.train, torch.Generator())
    regimes = torch.tensor([[1.0], [-1.0]])
    rising, falling = gate.weights(regimes)
    assert float(rising[0].detach()) > 0.9
    assert float(falling[1].detach()) > 0.9
    assert history["growth"][-1] > history["growth"][0]

    def score(policy: Any) -> float:
        return validation_sharpe(two_regimes, policy)

    policy = EnsemblePolicy(
        [long, short], combiner="gate", weights=torch.ones(2), gate=gate, features=two_regimes.features, flat_action=0.0
    )
    assert score(policy) > 3.0 + max(score(long), score(short))
    loaded = GateCombiner(**state["spec"])
    loaded.load_state_dict(state["state"])
    # The same batch: a matrix product of one row may round differently from one of two.
    assert torch.equal(loaded.weights(regimes)[0], rising)


def test_actions_of_members_are_those_of_their_own_accounts(trained: Any) -> None:
    dataset = trained.dataset
    agents = [policy_from_state(trained.parent("agent", name).state, dataset.features) for name in ("sac", "td3")]
    rows = range(dataset.split.train.start + 10, dataset.split.train.start + 30)
    actions = member_actions(dataset, agents, rows)
    assert actions.shape == (2, len(rows) - 1, 1)
    flat = torch.zeros(1, agents[0].agent.spec()["observation_dim"] - agents[0].table.shape[1])
    flat[0, [2, 3]] = 1.0  # tradable, all cash: the account before the first decision
    for agent, own in zip(agents, actions, strict=True):
        torch.testing.assert_close(own[:1], agent(torch.tensor([rows.start]), flat))


def test_the_registered_ensemble_is_the_one_that_was_judged(trained: Any) -> None:
    loaded = trained.manager.registry.load(trained.result.model_id)
    policy = policy_from_state(loaded.state, trained.dataset.features)
    assert isinstance(policy, EnsemblePolicy)
    assert len(policy.members) == 3
    assert isinstance(policy.gate, GateCombiner)
    assert validation_sharpe(trained.dataset, policy) == pytest.approx(trained.result.objective["value"], rel=1e-9)
    assert "weights" not in trained.result.notes  # a gate reads none


def test_weights_follow_the_validation_scores(trained: Any, tmp_path: Path) -> None:
    members = [trained.parent("member", "hybrid", name) for name in ("ppo", "sac", "td3")]
    model = trained.settings("stage=ensemble", "model.combiner=weighted").model
    outcome = run(trained.context(tmp_path), model=model, members=members)
    expected = weighted_by_score([trained.score(member) for member in members])
    assert list(outcome.notes["weights"].values()) == pytest.approx(expected.tolist())


def test_without_short_selling_a_vote_takes_sides_from_the_flat_position() -> None:
    invested, flat = constant(1.0), constant(-1.0)
    members = [invested, flat]
    policy = EnsemblePolicy(
        members, combiner="vote", weights=torch.ones(2), gate=None, features=FEATURES, flat_action=-1.0
    )
    t, account = torch.tensor([0]), torch.zeros(1, 3)
    assert policy(t, account).tolist() == [[-1.0]]  # no agreement: no position, and not half of one
    policy.members = [invested, invested, flat]
    assert policy(t, account).tolist() == [[1.0]]


def test_an_order_that_cannot_fill_leaves_the_position_before_it_in_place() -> None:
    prices = torch.ones(6, 2, dtype=torch.float64)
    tradable = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1], [1, 1], [1, 1]], dtype=torch.bool)
    series = MarketSeries(open=prices, close=prices, tradable=tradable)
    wanted = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], dtype=torch.float64)
    held = carried(wanted, series, MarketRules(), range(6))
    # Orders of bars 0 to 3 fill at the opens of bars 1 to 4. The first asset rests in bar 3: the orders decided in
    # bars 2 and 3 do not fill. The second is listed in bar 2: that of bar 1 was decided before.
    assert held[:, 0].tolist() == [0.1, 0.2, 0.2, 0.2]
    assert held[:, 1].tolist() == [0.0, 0.0, 0.7, 0.6]
