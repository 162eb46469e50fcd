"""Multi-layer perceptrons: one network, and several of the same shape evaluated in one batched product.

Shapes: B rows of a batch, M members, I inputs, O outputs. NaN inputs give NaN outputs.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trade_agent.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    # In place: what precedes it here (a linear layer, LayerNorm) does not need its own output to go backward.
    "relu": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def make_activation(name: str) -> nn.Module:
    """The activation called ``name``; raises ConfigError for a name that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation {name!r} is unknown", f"choose one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]()


def build_mlp(
    *,
    input_dim: int,
    hidden_dims: Sequence[int],
    output_dim: int | None = None,
    activation: str = "relu",
    layer_norm: bool = False,
) -> nn.Sequential:
    """Linear (LayerNorm) activation blocks, then a linear output unless ``output_dim`` is None: [B, I] -> [B, O].

    Weights start as PyTorch's default (uniform in +-1/sqrt(I)); see ``orthogonal_init`` for the other custom.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers.append(nn.Linear(input_dim, width))
        if layer_norm:
            layers.append(nn.LayerNorm(width))
        layers.append(make_activation(activation))
        input_dim = width
    if output_dim is not None:
        layers.append(nn.Linear(input_dim, output_dim))
    return nn.Sequential(*layers)


@torch.no_grad()
def orthogonal_init(network: nn.Sequential, *, hidden_gain: float = math.sqrt(2.0), output_gain: float) -> None:
    """Orthogonal weights and zero biases, in place; the last linear layer gets ``output_gain``.

    Engstrom et al. (2020), "Implementation Matters in Deep Policy Gradients", section 3: gain sqrt(2) in the trunk,
    0.01 at the policy mean (the first policy hardly depends on the state) and 1 at the value.
    """
    linear = [module for module in network if isinstance(module, nn.Linear)]
    for index, module in enumerate(linear):
        nn.init.orthogonal_(module.weight, output_gain if index == len(linear) - 1 else hidden_gain)
        nn.init.zeros_(module.bias)


class StackedMLP(nn.Module):
    """M networks of one shape, with their weights stacked: [B, I] -> [M, B, O].

    One batched product for each layer instead of M: fewer launches on a GPU, no loop in Python. Members differ only
    by their initial weights. ``frozen=True`` detaches the weights but not the input, so that a policy loss flows
    through a critic without paying for the critic's weight gradients. ``first=True`` evaluates member 0 alone.
    """

    def __init__(
        self,
        *,
        num_members: int,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.activation = make_activation(activation)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.norm_weights, self.norm_biases = nn.ParameterList(), nn.ParameterList()
        for width in (*hidden_dims, output_dim):
            bound = 1.0 / math.sqrt(input_dim)  # the same distribution as nn.Linear
            self.weights.append(nn.Parameter(torch.empty(num_members, input_dim, width).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(num_members, 1, width).uniform_(-bound, bound)))
            input_dim = width
        if layer_norm:
            for width in hidden_dims:
                self.norm_weights.append(nn.Parameter(torch.ones(num_members, 1, width)))
                self.norm_biases.append(nn.Parameter(torch.zeros(num_members, 1, width)))

    def forward(self, inputs: Tensor, frozen: bool = False, first: bool = False) -> Tensor:
        """``inputs`` [B, I] -> [M, B, O], or [1, B, O] with ``first``."""

        def weight(parameter: Tensor) -> Tensor:
            parameter = parameter[:1] if first else parameter
            return parameter.detach() if frozen else parameter

        hidden = inputs.expand(1 if first else self.num_members, *inputs.shape)
        last = len(self.weights) - 1
        for index in range(last + 1):
            if index == last and self.weights[index].shape[-1] == 1:
                # A batched product with a single column is several times slower than this on a CPU.
                products = hidden * weight(self.weights[index]).transpose(1, 2)
                return products.sum(-1, keepdim=True) + weight(self.biases[index])
            hidden = torch.baddbmm(weight(self.biases[index]), hidden, weight(self.weights[index]))
            if index == last:
                break
            if len(self.norm_weights):
                hidden = F.layer_norm(hidden, hidden.shape[-1:])
                hidden = hidden * weight(self.norm_weights[index]) + weight(self.norm_biases[index])
            hidden = self.activation(hidden)
        return hidden

    def member(self, index: int) -> nn.Sequential:
        """A copy of one member as a plain network; later updates of this module do not reach it."""
        layers: list[nn.Module] = []
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            linear = nn.Linear(weight.shape[1], weight.shape[2], device=weight.device)
            linear.weight.data.copy_(weight[index].detach().T)
            linear.bias.data.copy_(bias[index, 0].detach())
            layers.append(linear)
            if depth == len(self.weights) - 1:
                break
            if len(self.norm_weights):
                norm = nn.LayerNorm(weight.shape[2], device=weight.device)
                norm.weight.data.copy_(self.norm_weights[depth][index, 0].detach())
                norm.bias.data.copy_(self.norm_biases[depth][index, 0].detach())
                layers.append(norm)
            layers.append(self.activation)
        return nn.Sequential(*layers)
