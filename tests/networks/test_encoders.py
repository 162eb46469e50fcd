import pytest
import torch
from torch.testing import assert_close

from trade_agent.errors import DataError
from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.networks.encoders import TableEncoder, WindowEncoder, build_table

WINDOW, BARS, ASSETS, FEATURES, HORIZONS, LATENT = 9, 60, 2, 3, 2, 5
WIDTH = LATENT + 2 * HORIZONS + FEATURES


@pytest.fixture
def forecaster():
    torch.manual_seed(0)
    return CNNLSTM(
        num_features=FEATURES,
        window_bars=WINDOW,
        conv_channels=(4,),
        kernel_size=3,
        lstm_hidden=LATENT,
        lstm_layers=1,
        dropout=0.2,
        num_horizons=HORIZONS,
    )


@pytest.fixture
def series():
    return torch.randn(BARS, ASSETS, FEATURES, generator=torch.Generator().manual_seed(1))


def test_layout_is_latent_probability_return_features_for_each_asset(forecaster, series):
    encoder = WindowEncoder(forecaster, series).eval()
    t = torch.tensor([20, 31])
    observation = encoder(t)
    assert observation.shape == (2, encoder.output_dim) == (2, ASSETS * WIDTH)
    for row, bar in enumerate(t.tolist()):
        for asset in range(ASSETS):
            window = series[bar + 1 - WINDOW : bar + 1, asset].unsqueeze(0)
            expected = torch.cat((forecaster.features(window)[0], series[bar, asset]))
            assert_close(observation[row, asset * WIDTH : (asset + 1) * WIDTH], expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_table_equals_the_live_encoder_in_eval_mode(forecaster, series, block):
    forecaster.train()
    table = build_table(forecaster, series, block)
    assert forecaster.training
    assert table.shape == (BARS, ASSETS, WIDTH)
    assert not table.requires_grad
    encoder = WindowEncoder(forecaster, series).eval()
    bars = torch.arange(BARS)
    assert_close(TableEncoder(table)(bars), encoder(bars), atol=1e-6, rtol=0.0)
    for bar in (WINDOW - 1, 33):  # few bars take the other path through the forecaster
        assert_close(table[bar].flatten(), encoder(torch.tensor([bar]))[0], atol=1e-6, rtol=0.0)
    assert not table[: WINDOW - 1].any()
    assert table[WINDOW - 1].all()


@pytest.mark.parametrize("bars", [[25], list(range(15, 26))])
def test_bars_after_t_change_nothing(forecaster, series, bars):
    t = torch.tensor(bars)
    last = bars[-1]
    changed = series.clone()
    changed[last + 1 :] = 1e3
    assert_close(WindowEncoder(forecaster.eval(), changed)(t), WindowEncoder(forecaster, series)(t), atol=0.0, rtol=0.0)
    table, other = build_table(forecaster, series, 8), build_table(forecaster, changed, 8)
    assert torch.equal(other[: last + 1], table[: last + 1])
    # ... while the bar itself and the oldest of its window are seen, and no older one
    for bar, seen in ((last, True), (last - WINDOW + 1, True), (last - WINDOW, False)):
        changed = series.clone()
        changed[bar] += 1.0
        same = torch.equal(WindowEncoder(forecaster, changed)(t)[-1], WindowEncoder(forecaster, series)(t)[-1])
        assert same is not seen


def test_only_distinct_bars_are_encoded_and_gradient_flows(forecaster, series):
    encoder = WindowEncoder(forecaster, series).eval()
    t = torch.tensor([30, 12, 30, 30, 12])
    encoding = encoder.encode(t)
    assert encoding.bars.tolist() == [12, 30]
    assert encoding.counts.tolist() == [2, 3]
    assert encoding.forecast.direction_logit.shape == (2, ASSETS, HORIZONS)
    assert_close(encoding.observation[0], encoder(torch.tensor([30]))[0], atol=1e-6, rtol=0.0)
    assert_close(encoding.observation[1], encoder(torch.tensor([12]))[0], atol=1e-6, rtol=0.0)
    encoding.observation.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in forecaster.parameters())


def test_early_bars_are_zero_and_send_no_gradient(forecaster, series):
    encoder = WindowEncoder(forecaster, series)
    assert encoder.first_bar == WINDOW - 1
    observation = encoder(torch.tensor([0, WINDOW - 2]))
    assert not observation.any()
    observation.sum().backward()
    assert not any(parameter.grad.any() for parameter in forecaster.parameters())


def test_leading_gaps_are_missing_and_later_ones_are_refused(forecaster, series):
    series[:4] = torch.nan
    encoder = WindowEncoder(forecaster, series).eval()
    assert encoder.first_bar == 4 + WINDOW - 1
    observation = encoder(torch.arange(BARS))
    assert observation.isfinite().all()
    assert not observation[: encoder.first_bar].any()
    assert_close(TableEncoder(build_table(forecaster, series, 16))(torch.arange(BARS)), observation, atol=1e-6, rtol=0)
    series[40, 1, 2] = torch.inf
    with pytest.raises(DataError, match="features of bar 40 are not finite"):
        WindowEncoder(forecaster, series)


def test_a_series_shorter_than_a_window_is_refused(forecaster, series):
    with pytest.raises(DataError, match=r"series of 8 bars .* shorter than one window of 9 bars"):
        WindowEncoder(forecaster, series[:8])


def test_resident_data_is_no_weight(forecaster, series):
    assert set(WindowEncoder(forecaster, series).state_dict()) == {f"forecaster.{k}" for k in forecaster.state_dict()}
    assert not TableEncoder(series).state_dict()
    assert TableEncoder(series).output_dim == ASSETS * FEATURES
