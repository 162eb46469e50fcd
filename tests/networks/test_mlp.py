import math

import pytest
import torch
from torch.testing import assert_close

from trade_agent.errors import ConfigError
from trade_agent.networks.mlp import StackedMLP, build_mlp, orthogonal_init


def test_mlp_has_the_layers_it_was_asked_for():
    network = build_mlp(input_dim=3, hidden_dims=(8, 4), output_dim=2, activation="tanh", layer_norm=True)
    assert [type(layer).__name__ for layer in network] == [
        *("Linear", "LayerNorm", "Tanh", "Linear", "LayerNorm", "Tanh", "Linear")
    ]
    assert network(torch.zeros(5, 3)).shape == (5, 2)
    assert build_mlp(input_dim=3, hidden_dims=(8,))(torch.zeros(5, 3)).shape == (5, 8)


def test_unknown_activation_names_the_choices():
    with pytest.raises(ConfigError, match=r"activation 'rely' is unknown; choose one of .*relu"):
        build_mlp(input_dim=3, hidden_dims=(8,), activation="rely")


def test_orthogonal_init_scales_trunk_and_output():
    network = build_mlp(input_dim=16, hidden_dims=(16,), output_dim=4)
    orthogonal_init(network, output_gain=0.01)
    trunk, output = network[0].weight.detach(), network[-1].weight.detach()
    assert_close(trunk @ trunk.T, 2.0 * torch.eye(16), atol=1e-5, rtol=0.0)
    assert_close(output @ output.T, 1e-4 * torch.eye(4), atol=1e-8, rtol=0.0)
    assert not network[0].bias.any()
    assert not network[-1].bias.any()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_stacked_members_equal_plain_networks(layer_norm):
    torch.manual_seed(0)
    stacked = StackedMLP(num_members=3, input_dim=5, hidden_dims=(16, 8), output_dim=2, layer_norm=layer_norm)
    for parameter in (*stacked.norm_weights, *stacked.norm_biases):
        torch.nn.init.normal_(parameter)
    inputs = torch.randn(7, 5)
    outputs = stacked(inputs)
    assert outputs.shape == (3, 7, 2)
    for index in range(3):
        assert_close(stacked.member(index)(inputs), outputs[index], atol=1e-6, rtol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_stacked_init_is_that_of_a_linear_layer():
    torch.manual_seed(0)
    stacked = StackedMLP(num_members=2, input_dim=64, hidden_dims=(256,), output_dim=1)
    weight = stacked.weights[0].detach()
    assert weight.abs().max() <= 1.0 / 8.0
    assert abs(weight.std().item() - 1.0 / 8.0 / math.sqrt(3.0)) < 1e-3


def test_first_is_member_zero_alone():
    stacked = StackedMLP(num_members=3, input_dim=4, hidden_dims=(8, 8), output_dim=1, layer_norm=True)
    inputs = torch.randn(5, 4)
    alone = stacked(inputs, first=True)
    assert alone.shape == (1, 5, 1)
    torch.testing.assert_close(alone[0], stacked.member(0)(inputs), atol=1e-6, rtol=1e-5)
    alone.sum().backward()
    for parameter in stacked.parameters():
        assert not parameter.grad[1:].any()


def test_frozen_stops_at_the_weights_and_not_at_the_input():
    stacked = StackedMLP(num_members=2, input_dim=3, hidden_dims=(8,), output_dim=1, layer_norm=True)
    inputs = torch.randn(4, 3, requires_grad=True)
    stacked(inputs, frozen=True).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in stacked.parameters())
