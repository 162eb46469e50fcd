"""Targets, samples, loss, early stopping and cross-fitting of the forecaster."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from trade_agent.agents.processes import Alone
from trade_agent.errors import TrainingDivergedError
from trade_agent.networks.cnn_lstm import CNNLSTM, Forecast
from trade_agent.networks.encoders import build_table
from trade_agent.training import supervised
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.supervised import (
    FitResult,
    FitSettings,
    Fold,
    Targets,
    align_latent,
    cross_fitted_table,
    evaluate_loss,
    fit_forecaster,
    fold_bounds,
    forecast_loss,
    label_rows,
    make_targets,
    outside,
    samples,
    valid_entries,
    windows_of,
)


def small_network(num_features: int = 1, window_bars: int = 4, num_horizons: int = 1, hidden: int = 8) -> CNNLSTM:
    return CNNLSTM(
        num_features=num_features,
        window_bars=window_bars,
        conv_channels=[4],
        kernel_size=2,
        lstm_hidden=hidden,
        lstm_layers=1,
        dropout=0.0,
        num_horizons=num_horizons,
    )


def settings(epochs: int = 3, patience: int = 3, learning_rate: float = 1e-2, batch_size: int = 32) -> FitSettings:
    return FitSettings(
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.0,
        direction_weight=0.5,
    )


# ------------------------------------------------------------------------------------------------ targets


def test_targets_by_hand() -> None:
    # log prices 0, 1, 3, 6, 10, 10; the train rows are the first four
    close = np.exp(np.array([0.0, 1.0, 3.0, 6.0, 10.0, 10.0]))[:, None]
    targets = make_targets(close, np.ones((6, 1), dtype=bool), [1, 2], range(4))
    # Train labels of horizon 1 start at rows 0, 1, 2 (1, 2, 3), of horizon 2 at rows 0, 1 (3, 5).
    np.testing.assert_allclose(targets.scale.numpy(), [math.sqrt(2.0 / 3.0), 1.0], rtol=1e-6)
    unscaled = (targets.returns * targets.scale)[:, 0].numpy()
    np.testing.assert_allclose(unscaled[:, 0], [1, 2, 3, 4, 0, 0], atol=1e-5)
    np.testing.assert_allclose(unscaled[:, 1], [3, 5, 7, 4, 0, 0], atol=1e-5)
    assert targets.valid[:, 0, 0].tolist() == [True] * 5 + [False]
    assert targets.valid[:, 0, 1].tolist() == [True] * 4 + [False] * 2


def test_a_label_needs_both_its_ends_traded_and_is_never_nan() -> None:
    close = np.array([[1.0], [2.0], [np.nan], [4.0], [8.0]])
    targets = make_targets(close, np.isfinite(close), [1], range(5))
    assert targets.valid[:, 0, 0].tolist() == [True, False, False, True, False]
    assert torch.isfinite(targets.returns).all()


def test_the_scale_knows_train_rows_only() -> None:
    close = np.exp(np.cumsum(np.random.default_rng(1).normal(size=(60, 2)), axis=0))
    tradable, train = np.ones_like(close, dtype=bool), range(5, 30)
    before = make_targets(close, tradable, [1, 5], train)
    changed = close.copy()
    changed[train.stop :] *= np.linspace(2.0, 9.0, 30)[:, None]
    after = make_targets(changed, tradable, [1, 5], train)
    assert torch.equal(before.scale, after.scale)
    # A label that starts in train and ends behind it does move, so it must not count in the scale.
    assert not torch.equal(before.returns[train.stop - 1], after.returns[train.stop - 1])
    changed[train.start + 3] *= 1.5
    assert not torch.equal(before.scale, make_targets(changed, tradable, [1, 5], train).scale)


def test_constant_prices_have_scale_one() -> None:
    targets = make_targets(np.ones((9, 1)), np.ones((9, 1), dtype=bool), [1], range(6))
    assert targets.scale.tolist() == [1.0]


def test_labels_and_windows_stay_inside_their_split() -> None:
    rows = label_rows(range(20, 50), [1, 7], window_bars=6, first_row=18)
    assert rows == range(23, 43)
    assert rows.start - 6 + 1 == 18  # the oldest bar of the first window is the first with features
    assert rows[-1] + 7 == 49  # the last label ends on the last bar
    assert label_rows(range(30, 50), [1], window_bars=6, first_row=18).start == 30


def test_samples_are_the_pairs_whose_every_horizon_is_valid() -> None:
    valid = torch.ones(6, 2, 2, dtype=torch.bool)
    valid[3, 1, 0] = False
    valid[4, 0, 1] = False
    assert samples([2, 3, 4], valid).tolist() == [[2, 0], [2, 1], [3, 0], [4, 1]]


@pytest.mark.parametrize("num_assets", [1, 3])
def test_a_window_holds_the_bars_up_to_its_own(num_assets: int) -> None:
    series = torch.arange(10.0 * num_assets * 2).view(10, num_assets, 2)
    pairs = torch.tensor([[3, 0], [9, num_assets - 1], [5, num_assets // 2]])
    windows = windows_of(series, pairs, 4)
    for window, (t, a) in zip(windows, pairs.tolist(), strict=True):
        assert torch.equal(window, series[t - 3 : t + 1, a])


def test_loss_by_hand() -> None:
    logit = math.log(3.0)  # a probability of 3/4
    forecast = Forecast(torch.zeros(1, 1), torch.tensor([[logit, logit, 9.0]]), torch.tensor([[1.0, 0.0, 50.0]]))
    returns = torch.tensor([[3.0, -1.0, 0.0]])
    valid = torch.tensor([[True, True, False]])
    expected = ((4.0 + 1.0) + 0.5 * (-math.log(0.75) - math.log(0.25))) / 2.0
    found = forecast_loss(forecast, returns, valid, 0.5, valid_entries(valid, Alone()))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    none = torch.zeros_like(valid)
    assert float(forecast_loss(forecast, returns, none, 0.5, valid_entries(none, Alone()))) == 0.0


# ------------------------------------------------------------------------------------------------ the loop


def planted_market(num_bars: int = 1200) -> tuple[Tensor, Targets]:
    """Log returns that follow the last one with coefficient 0.6, the last one being the only feature."""
    random = np.random.default_rng(3)
    returns = np.zeros(num_bars)
    for t in range(1, num_bars):
        returns[t] = 0.6 * returns[t - 1] + random.normal()
    close = np.exp(0.01 * np.cumsum(returns))[:, None]
    targets = make_targets(close, np.ones((num_bars, 1), dtype=bool), [1], range(800))
    return torch.tensor(returns, dtype=torch.float32).view(-1, 1, 1), targets


def fit(network: CNNLSTM, fitted: FitSettings, seed: int = 0) -> tuple[FitResult, Tensor, Targets, Tensor]:
    series, targets = planted_market()
    validation, generator = samples(range(820, 1190), targets.valid), torch.Generator().manual_seed(seed)
    result = fit_forecaster(
        network,
        series=series,
        targets=targets,
        train=samples(range(3, 799), targets.valid),
        validation=validation,
        settings=fitted,
        generator=generator,
        session=no_checkpoints().session("test", generator),
    )
    return result, series, targets, validation


def test_a_planted_signal_is_learned() -> None:
    torch.manual_seed(0)
    network = small_network()
    _, series, targets, validation = fit(network, settings(epochs=6))
    t = validation[:, 0]
    with torch.no_grad():
        forecast = network(windows_of(series, validation, 4))
    truth = targets.returns[t, 0]
    skill = 1.0 - float((forecast.expected_return - truth).square().mean() / truth.square().mean())
    # The best forecast explains 0.36 of the variance.
    assert 0.25 < skill < 0.45
    accuracy = float(((forecast.direction_logit > 0) == (truth > 0)).float().mean())
    assert accuracy > 0.65  # 0.5 + asin(0.6) / pi = 0.70 is the best


def test_the_best_epoch_is_kept_and_training_stops_after_patience() -> None:
    torch.manual_seed(0)
    network = small_network()
    # So large a step makes the validation loss go up and down.
    result, series, targets, validation = fit(network, settings(epochs=40, patience=2, learning_rate=0.1))
    best = int(np.argmin(result.validation_loss))
    assert result.best_epoch == best
    assert len(result.validation_loss) == best + 1 + 2 < 40
    assert result.validation_loss[-1] > result.validation_loss[best]
    assert evaluate_loss(network, series, targets, validation, 0.5) == pytest.approx(result.validation_loss[best])
    assert not network.training


def test_the_same_generator_gives_the_same_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(0)
        network = small_network()
        fit(network, settings(epochs=1), seed)
        return torch.cat([value.flatten() for value in network.state_dict().values()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


@pytest.mark.parametrize(
    ("bad_row", "message"),
    [(50, "nan on train rows and nan on validation rows in epoch 1"), (150, "inf on validation rows in epoch 1")],
)
def test_a_loss_that_is_not_finite_ends_training(bad_row: int, message: str) -> None:
    series, targets = planted_market(200)
    train, validation = samples(range(3, 100), targets.valid), samples(range(110, 190), targets.valid)
    targets.returns[bad_row] = math.inf
    with pytest.raises(TrainingDivergedError, match=f"{message}; lower model.learning_rate"):
        fit_forecaster(
            small_network(),
            series=series,
            targets=targets,
            train=train,
            validation=validation,
            settings=settings(),
            generator=torch.Generator().manual_seed(0),
            session=no_checkpoints().session("test", torch.Generator()),
        )


# ------------------------------------------------------------------------------------------------ cross-fitting


def test_folds_cover_the_rows_once() -> None:
    blocks = fold_bounds(range(10, 31), 4)
    assert (blocks[0].start, blocks[-1].stop) == (10, 31)
    assert all(a.stop == b.start for a, b in pairwise(blocks))
    assert {len(block) for block in blocks} <= {5, 6}
    assert fold_bounds(range(10, 31), 0) == []


def test_rows_outside_a_block_are_purged_on_both_sides() -> None:
    window_bars, horizon = 4, 2
    purge = window_bars + horizon
    block = range(20, 30)
    rows = outside(range(50), block, purge)
    assert rows == [*range(14), *range(36, 50)]
    # What a row of the block sees, and what it is scored on, shares no bar with what the fold trained on.
    seen_by_block = set(range(block.start - window_bars + 1, block.stop + horizon))
    for t in rows:
        assert not seen_by_block & set(range(t - window_bars + 1, t + horizon + 1))


@pytest.mark.parametrize("every", [1, 2])
def test_alignment_recovers_a_linear_map(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "ALIGN_ROWS", {1: 600, 2: 599}[every])  # 300 bars of 2 assets
    random = torch.Generator().manual_seed(0)
    fold = torch.randn(400, 2, 5, generator=random)
    weight, bias = torch.randn(3, 3, generator=random), torch.tensor([1.0, -2.0, 0.5])
    final = fold.clone()
    final[..., :3] = fold[..., :3] @ weight + bias
    final[300:] = 99.0  # rows that are not to be looked at
    final[1::2] += {1: 0.0, 2: 99.0}[every]
    found_weight, found_bias = align_latent(fold, final, range(300), 3)
    torch.testing.assert_close(found_weight, weight, atol=0.01, rtol=0.0)
    torch.testing.assert_close(found_bias, bias, atol=0.01, rtol=0.0)


def test_an_alignment_of_as_many_rows_as_allowed_leaves_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "ALIGN_ROWS", 600)
    fold = torch.randn(300, 2, 3, generator=torch.Generator().manual_seed(0))
    fold[::2] = 0.0  # all that there is to learn lies in the rows between
    weight, _ = align_latent(fold, fold, range(300), 3)
    torch.testing.assert_close(weight, torch.eye(3), atol=0.01, rtol=0.0)


def test_each_block_comes_from_its_own_fold_and_the_rest_from_the_final_forecaster() -> None:
    torch.manual_seed(0)
    final, first, second = (small_network(2) for _ in range(3))
    series = torch.randn(40, 2, 2)
    series[:3] = math.nan
    identity, zero = torch.eye(8), torch.zeros(8)
    shift = torch.full((8,), 7.0)
    folds = [
        Fold(10, 20, first.state_dict(), identity, zero),
        Fold(20, 30, second.state_dict(), 2.0 * identity, shift),
    ]
    before = {name: value.clone() for name, value in final.state_dict().items()}
    table = cross_fitted_table(final, folds, series)
    own, of_first, of_second = (build_table(network, series, 64) for network in (final, first, second))
    torch.testing.assert_close(table[:10], own[:10])
    torch.testing.assert_close(table[10:20], of_first[10:20])
    torch.testing.assert_close(table[20:30, :, :8], 2.0 * of_second[20:30, :, :8] + 7.0)
    torch.testing.assert_close(table[20:30, :, 8:], of_second[20:30, :, 8:])  # the heads need no alignment
    torch.testing.assert_close(table[30:], own[30:])
    assert all(torch.equal(value, before[name]) for name, value in final.state_dict().items())


def test_batches_of_the_evaluation_are_averaged_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    series, targets = planted_market(200)
    network, pairs = small_network(), samples(range(3, 190), targets.valid)
    whole = evaluate_loss(network, series, targets, pairs, 0.5)
    monkeypatch.setattr(supervised, "TABLE_BATCH", 50)
    assert evaluate_loss(network, series, targets, pairs, 0.5) == pytest.approx(whole, rel=1e-5)
