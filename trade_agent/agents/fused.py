"""What ``fuse`` of an agent compiles: its losses together with their gradients, in one graph, and its actions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from trade_agent.agents.base import Action

# Options of torch.compile. Random numbers are those that PyTorch draws without compiling. On a CPU its tanh takes five
# times as long as an exponential; 2 / (1 + exp(-2x)) - 1 is off by 2e-7 at most.
FUSED: dict[str, Any] = {"fallback_random": True, "cpp.use_decompose_tanh": True}

Backward = Callable[..., dict[str, Tensor]]


class _Holder(nn.Module):
    """An agent whose parameters can be replaced while its objective is computed."""

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        return self.agent.objective(batch)  # type: ignore[no-any-return, operator]


def fused_backward(agent: nn.Module, learning: Callable[[], Sequence[nn.Parameter]]) -> Backward:
    """``backward`` of an ``Agent``, compiled together with its ``objective``, for the parameters that are ``learning``.

    Autograd would call two compiled functions, and carry from one to the other all that the second one needs.
    """
    holder = _Holder(agent)
    names = {parameter: name for name, parameter in holder.named_parameters()}

    def losses_and_gradients(
        tensors: dict[str, Tensor], batch: TensorDict, encoded: bool
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        batch = batch.copy()

        def loss(tensors: dict[str, Tensor], observation: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            batch["observation"] = observation
            return functional_call(holder, tensors, (batch,))  # type: ignore[no-any-return]

        gradient = grad_and_value(loss, argnums=(0, 1) if encoded else (0,), has_aux=True)
        (of_tensors, *of_observation), (_, metrics) = gradient(tensors, batch["observation"])
        # In the layout of the parameters, as Adam's kernel expects it.
        return metrics, [of_tensors[name].contiguous() for name in tensors], of_observation

    compiled = torch.compile(losses_and_gradients, dynamic=False, options=FUSED)

    def backward(batch: TensorDict, *, share: float = 1.0, extra_loss: Tensor | None = None) -> dict[str, Tensor]:
        observation, parameters = batch["observation"], learning()
        tensors: dict[str, Tensor] = {names[parameter]: parameter for parameter in parameters}
        with torch.no_grad():  # the gradients are wanted, not those of the gradients
            metrics, gradients, of_observation = compiled(tensors, batch, observation.requires_grad)
            if share != 1.0:
                metrics = {name: share * value for name, value in metrics.items()}
                gradients = [share * gradient for gradient in gradients]
                of_observation = [share * gradient for gradient in of_observation]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        ends: list[tuple[Tensor, Tensor | None]] = [(observation, gradient) for gradient in of_observation]
        if extra_loss is not None:
            ends.append((extra_loss, None))
        if ends:  # both at once: an encoder in front of them is gone through one time
            torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
        return metrics

    return backward


def fused_act(act: Callable[..., Action]) -> Callable[..., Action]:
    """``act`` of an ``Agent``, compiled for rollouts; deterministic, for any number of rows, it stays as it is."""
    explore = torch.compile(partial(act, deterministic=False), dynamic=False, options=FUSED)

    def fused(observation: Tensor, *, deterministic: bool) -> Action:
        return act(observation, deterministic=True) if deterministic else explore(observation)

    return fused
