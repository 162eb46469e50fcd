"""Steps that do not fit memory are taken in parts, and what is learned stays the same."""

import logging
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from tests.training import test_distributed
from tests.training.test_distributed import ACCOUNT, ROWS, double, hybrid_batch, train_hybrid
from trade_agent.agents.builders import agent_from_spec
from trade_agent.agents.ppo import PPO
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.networks.encoders import WindowEncoder
from trade_agent.training import reinforcement, supervised
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.distributed import World
from trade_agent.training.interaction import Interaction
from trade_agent.training.learner import Learner
from trade_agent.training.memory import accumulate, is_out_of_memory
from trade_agent.training.stages import cnn_lstm
from trade_agent.training.supervised import (
    FitResult,
    FitSettings,
    Targets,
    evaluate_loss,
    feature_table,
    fit_forecaster,
)

T = TypeVar("T")
MORE_THAN_THERE_IS = 2**59  # elements: no allocator grants it, whatever the machine has


class Crowded(CNNLSTM):
    """In training more than `most` windows at once ask the allocator for what it cannot give."""

    most = 10**9

    def forward(self, windows: torch.Tensor):  # type: ignore[no-untyped-def]
        if self.training and len(windows) > self.most:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return super().forward(windows)


def fit(most: int) -> tuple[dict[str, torch.Tensor], FitResult]:
    """Two epochs in float64, where sums in another order still agree to many digits."""
    torch.manual_seed(3)
    network = Crowded(
        num_features=2, window_bars=4, conv_channels=[4], kernel_size=2, lstm_hidden=4, lstm_layers=1, dropout=0.0,
        num_horizons=2,
    ).double()  # fmt: skip
    network.most = most
    series = torch.randn(60, 1, 2, dtype=torch.float64)
    returns = torch.randn(60, 1, 2, dtype=torch.float64)
    targets = Targets(returns, torch.ones(60, 1, 2, dtype=torch.bool), torch.ones(2))
    pairs = torch.stack((torch.arange(4, 60), torch.zeros(56, dtype=torch.int64)), dim=1)
    generator = torch.Generator().manual_seed(1)
    result = fit_forecaster(
        network,
        series=series,
        targets=targets,
        train=pairs[:40],
        validation=pairs[40:],
        settings=FitSettings(
            epochs=2, patience=2, batch_size=16, learning_rate=1e-3, weight_decay=0.0, direction_weight=0.5
        ),
        generator=generator,
        session=no_checkpoints().session("forecaster", generator),
    )
    return network.state_dict(), result


def test_a_forecaster_that_does_not_fit_learns_the_same_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    whole, expected = fit(most=16)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        parts, result = fit(most=5)
    assert [record.args for record in caplog.records] == [(16, 8), (8, 4)]  # once, not in every step
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-12)
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=1e-10)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-8, atol=1e-10)


KINDS = pytest.mark.parametrize("kind", ["ppo", "sac", "td3"])


def crowd(function: Callable[..., T], most: int) -> Callable[..., T]:
    """With gradients, more than `most` bars at once ask the allocator for what it cannot give."""

    def crowded(*arguments: Any) -> T:
        if torch.is_grad_enabled() and len(arguments[-1]) > most:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return function(*arguments)

    return crowded


def train_agent(kind: str, most: int) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A few updates on minibatches of 32 rows in float64: the weights, and the metrics of each update."""
    torch.manual_seed(3)
    spec: dict[str, Any] = {"name": kind, "observation_dim": 1 + ACCOUNT, "action_dim": 1, "hidden_dims": [8]}
    if kind == "ppo":
        spec["entropy_coefficient"] = 0.1  # whose estimate draws noise
    agent = agent_from_spec(spec)
    double(agent)
    look = crowd(lambda account, t: torch.cat((t.unsqueeze(1) / 100.0, account), dim=-1), most)
    learner = Learner(agent, lambda t, account: look(account, t))
    generator = torch.Generator().manual_seed(1)
    metrics = []
    for _ in range(6):
        draws = torch.randn(ROWS, 2 * ACCOUNT + 4, generator=generator, dtype=torch.float64)
        metrics.append(learner(hybrid_batch(kind, torch.randint(4, 90, (ROWS,), generator=generator), draws)))
    return agent.state_dict(), metrics


@KINDS
def test_an_agent_whose_minibatch_does_not_fit_learns_the_same_in_parts(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, expected = train_agent(kind, most=ROWS)
    assert not caplog.records
    parts, metrics = train_agent(kind, most=10)
    assert [record.args for record in caplog.records] == [(32, 16), (16, 8)]  # once, not in every step
    for mine, theirs in ((parts, whole), *zip(metrics, expected, strict=True)):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=0.0, atol=1e-10)


@KINDS
def test_joint_training_that_does_not_fit_learns_the_same_in_parts(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some bars are in several parts of a batch, and some have no label."""
    monkeypatch.setattr(test_distributed, "UPDATES", 25)
    whole = train_hybrid(kind, World())
    assert not caplog.records
    monkeypatch.setattr(WindowEncoder, "encode", crowd(WindowEncoder.encode, most=20))
    parts = train_hybrid(kind, World())
    assert [record.args for record in caplog.records] == [(32, 16)]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0.0, atol=1e-10)


def short(function: Callable[..., T], most: int) -> Callable[..., T]:
    """More than `most` bars at once ask the allocator for what it cannot give."""

    def crowded(*arguments: Any) -> T:
        if max(len(each) for each in arguments if isinstance(each, torch.Tensor) and each.dtype == torch.int64) > most:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return function(*arguments)

    return crowded


def test_passes_without_gradients_that_do_not_fit_give_the_same_in_smaller_blocks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    network = CNNLSTM(
        num_features=2, window_bars=4, conv_channels=[4], kernel_size=2, lstm_hidden=4, lstm_layers=1, dropout=0.0,
        num_horizons=2,
    ).double()  # fmt: skip
    series, returns = torch.randn(2, 60, 1, 2, dtype=torch.float64)
    targets = Targets(returns, torch.ones(60, 1, 2, dtype=torch.bool), torch.ones(2))
    pairs = torch.stack((torch.arange(4, 60), torch.zeros(56, dtype=torch.int64)), dim=1)
    whole = evaluate_loss(network, series, targets, pairs, 0.5), feature_table(network, series)
    monkeypatch.setattr(supervised, "_loss", short(supervised._loss, most=20))
    monkeypatch.setattr(CNNLSTM, "encode_from_series", short(CNNLSTM.encode_from_series, most=20))
    assert evaluate_loss(network, series, targets, pairs, 0.5) == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(feature_table(network, series), whole[1], rtol=0.0, atol=1e-12)
    assert [record.args for record in caplog.records] == [(56, 28), (28, 14), (60, 30), (30, 15)]


def test_the_values_of_a_rollout_that_does_not_fit_are_the_same_in_smaller_blocks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = agent_from_spec({"name": "ppo", "observation_dim": 1 + ACCOUNT, "action_dim": 1, "hidden_dims": [8]})
    double(agent)
    assert isinstance(agent, PPO)
    buffer = RolloutBuffer(num_steps=6, num_envs=5, private_dim=ACCOUNT, action_dim=1, device=torch.device("cpu"))
    buffer.t = torch.randint(4, 90, (6, 5))
    buffer.private, buffer.next_private = torch.randn(2, 6, 5, ACCOUNT, dtype=torch.float64)

    def observe(t: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        return torch.cat((t.unsqueeze(1) / 100.0, account), dim=-1)

    whole = reinforcement._values(agent, buffer, observe)
    parts = reinforcement._values(agent, buffer, short(observe, most=8))
    for mine, theirs in zip(parts, whole, strict=True):
        assert mine.shape == (6, 5)
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-12)
    assert [record.args for record in caplog.records] == [(30, 15), (15, 8)] * 2


def test_steps_whose_observations_do_not_fit_are_the_same_in_smaller_blocks(
    series: MarketSeries, rules: MarketRules, caplog: pytest.LogCaptureFixture
) -> None:
    def observe(t: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
        return torch.cat((t.unsqueeze(1) / 100.0, private), dim=-1)

    def steps(observe: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(1)
        env = TrainingMarket(
            series=series, rules=rules, rows=range(10, 60), num_envs=6, episode_bars=7, reward_scale=1.0,
            generator=generator,
        )  # fmt: skip
        spec = {"name": "sac", "observation_dim": 1 + env.private_dim, "action_dim": env.action_dim}
        interact = Interaction(agent_from_spec(spec | {"hidden_dims": [8]}), env, observe, generator)
        return [tensor for _ in range(3) for made in interact(False) for tensor in made]

    whole, parts = steps(observe), steps(short(observe, most=2))
    assert all(map(torch.equal, whole, parts))
    assert [record.args for record in caplog.records] == [(6, 3), (3, 2)]  # once, not in every step


def test_what_does_not_fit_row_by_row_is_the_error_of_the_allocator() -> None:
    with pytest.raises(RuntimeError, match="allocate") as caught:
        fit(most=0)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def wrong(part: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        accumulate(torch.zeros(4), wrong, size=None, clear=lambda: None)


def test_targets_are_let_go_before_the_verdict(trained, tmp_path, monkeypatch):
    config = trained.settings("stage=cnn_lstm", "trainer.forecaster_epochs=1", "trainer.cross_fit_folds=0")
    make, judge, alive = cnn_lstm.make_targets, cnn_lstm.evaluate, []

    def watched_targets(*arguments):
        targets = make(*arguments)
        alive.append(weakref.ref(targets.returns))
        return targets

    def watched_verdict(*arguments):
        assert [ref() for ref in alive] == [None]
        return judge(*arguments)

    monkeypatch.setattr(cnn_lstm, "make_targets", watched_targets)
    monkeypatch.setattr(cnn_lstm, "evaluate", watched_verdict)
    cnn_lstm.run(trained.context(tmp_path, config), stage=config.stage, model=config.model)
    assert alive
