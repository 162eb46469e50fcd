import pytest
import torch
from torch.testing import assert_close

from trade_agent.errors import ConfigError
from trade_agent.networks.cnn_lstm import CNNLSTM


def make(**changes):
    torch.manual_seed(0)
    settings = {
        "num_features": 4,
        "window_bars": 12,
        "conv_channels": (6, 5),
        "kernel_size": 3,
        "lstm_hidden": 7,
        "lstm_layers": 2,
        "dropout": 0.3,
        "num_horizons": 2,
    } | changes
    return CNNLSTM(**settings)


def windows_of(series, ends, length):
    return torch.stack([series[end + 1 - length : end + 1] for end in ends.tolist()])


def test_shapes_and_features():
    net = make().eval()
    forecast = net(torch.randn(3, 12, 4))
    assert [tuple(part.shape) for part in forecast] == [(3, 7), (3, 2), (3, 2)]
    assert (net.latent_dim, net.feature_dim) == (7, 11)
    windows = torch.randn(3, 12, 4)
    features = net.features(windows)
    forecast = net(windows)
    assert_close(features[:, :7], forecast.latent)
    assert_close(features[:, 7:9], forecast.direction_logit.sigmoid())
    assert_close(features[:, 9:], forecast.expected_return)


def test_convolving_the_series_once_equals_convolving_each_window():
    net = make().eval()
    series, ends = torch.randn(40, 4), torch.tensor([11, 12, 25, 39])
    from_series = net.encode_from_series(net.convolve_series(series), ends)
    for ours, expected in zip(from_series, net(windows_of(series, ends, 12)), strict=True):
        assert_close(ours, expected, atol=1e-6, rtol=0.0)


def test_assets_share_the_weights_and_do_not_mix():
    net = make().eval()
    series, ends = torch.randn(40, 3, 4), torch.tensor([11, 30])
    together = net.encode_from_series(net.convolve_series(series), ends)
    assert together.latent.shape == (2, 3, 7)
    for asset in range(3):
        alone = net.encode_from_series(net.convolve_series(series[:, asset]), ends)
        for ours, expected in zip(together, alone, strict=True):
            assert_close(ours[:, asset], expected, atol=1e-6, rtol=0.0)


def test_series_path_has_the_gradients_of_the_window_path():
    net = make(dropout=0.0).double()  # float32 differs by rounding in the fifth digit, and not by the same on each CPU
    series, ends = torch.randn(30, 4, dtype=torch.float64), torch.tensor([11, 13, 29])
    gradients = []
    for forecast in (net.encode_from_series(net.convolve_series(series), ends), net(windows_of(series, ends, 12))):
        net.zero_grad()
        net_loss = sum(part.square().sum() for part in forecast)
        net_loss.backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        assert_close(ours, expected, atol=1e-12, rtol=1e-10)


def test_lstm_starts_from_zero_for_each_window():
    net = make().eval()
    windows = torch.randn(5, 12, 4)
    first = net(windows).latent
    assert_close(net(windows).latent, first, atol=0.0, rtol=0.0)  # nothing is carried from one call to the next
    assert_close(net(windows.flip(0)).latent.flip(0), first, atol=1e-6, rtol=0.0)  # nor from row to row

    # An LSTM from a zero state on zero input with zero biases stays at zero: LayerNorm of a constant is its bias.
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "bias" in name:
                parameter.zero_()
    assert not net(torch.zeros(2, 12, 4)).latent.any()


def test_dropout_acts_in_training_only():
    net = make(dropout=0.5)
    windows = torch.randn(4, 12, 4)
    assert (net(windows).direction_logit - net(windows).direction_logit).abs().max() > 1e-4
    net.eval()
    assert_close(net(windows).direction_logit, net(windows).direction_logit, atol=0.0, rtol=0.0)


def test_a_window_that_the_convolutions_eat_up_is_refused():
    with pytest.raises(ConfigError, match=r"window_bars=4 is shorter .* use window_bars >= 5"):
        make(window_bars=4)
    assert make(window_bars=5).eval()(torch.randn(2, 5, 4)).latent.shape == (2, 7)


def test_learns_to_read_the_newest_bar():
    """The sign of the newest bar is the label; the forecaster gets it right on unseen bars."""
    net = make(conv_channels=(8,), lstm_hidden=16, lstm_layers=1, dropout=0.0, num_features=1, num_horizons=1)
    series = torch.randn(600, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        ends = torch.randint(11, 400, (64,))
        logit = net.encode_from_series(net.convolve_series(series), ends).direction_logit[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, (series[ends, 0] > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ends = torch.arange(420, 600)
    logit = net.eval().encode_from_series(net.convolve_series(series), ends).direction_logit[:, 0]
    assert ((logit > 0) == (series[ends, 0] > 0)).float().mean() > 0.9
