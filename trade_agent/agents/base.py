"""What every agent offers, and the few pieces that PPO, SAC and TD3 share.

Shapes: B rows of a batch, O observation, A assets (action dimensions). Actions are real numbers in [-1, 1].
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from trade_agent.agents.normalisers import ObservationNormaliser, RewardNormaliser
from trade_agent.agents.processes import Processes

GradientHook = Callable[[Sequence[nn.Parameter]], None]


class Action(NamedTuple):
    action: Tensor  # [B, A] in [-1, 1]
    raw: Tensor  # [B, A] what was sampled, see agents/policies.py; zeros where an agent has none
    log_prob: Tensor  # [B] log density of ``action``; zeros where an agent has none


class Agent(Protocol):
    """An agent is an nn.Module: ``state_dict`` covers networks, targets and log-alpha.

    ``update`` does one gradient step on its own optimizer: ``prepare``, ``backward``, ``step``, ``count``. ``prepare``
    adds to a minibatch what is drawn for it or taken over all of it, and needs no observation; from there on its rows
    can be taken in parts. ``backward`` adds the gradient of ``share`` of the ``objective`` (what to minimise, and the
    metrics), plus ``extra_loss``, to those that are there, and returns that share of each metric: shares of the number
    of rows add up to the whole. ``step`` clips, steps, updates the targets softly, and completes the metrics. Up to
    there only tensors change, in place, and updates with the same ``turn`` run the same operations: they can be
    captured in a CUDA graph. What Python keeps of an update that was made is for ``count``.

    ``fuse`` compiles ``backward``, and of PPO ``act``. The random numbers are the same, and results are equal up to
    rounding. Kernels are built at the first use with each size of a batch: 8 to 60 seconds, and on a CPU a C++
    compiler.

    Gradients that run into ``batch["observation"]`` are left in the leaves behind it (an encoder), whose optimizer
    belongs to the caller. Nothing in ``act`` and ``update`` waits for the device: metrics are detached 0-d tensors, and
    whether they are finite is for the training loop to check.
    """

    name: str
    on_policy: bool
    copies: int  # agents that learn side by side in it: 1, or more in a stack, see agents/copies.py
    gamma: float
    observation_normaliser: ObservationNormaliser  # both learn from what a training loop shows them, see there
    reward_normaliser: RewardNormaliser
    gradient_hook: GradientHook | None  # called between backward and clip, e.g. to average over processes
    processes: Processes  # that share its batches: statistics are taken over all of them

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def act(self, observation: Tensor, *, deterministic: bool) -> Action: ...

    def prepare(self, batch: TensorDict) -> TensorDict: ...

    def objective(self, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]: ...

    def backward(
        self, batch: TensorDict, *, share: float = 1.0, extra_loss: Tensor | None = None
    ) -> dict[str, Tensor]: ...

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]: ...

    @property
    def turn(self) -> bool: ...

    def count(self) -> None: ...

    def fuse(self) -> None: ...

    def update(self, batch: TensorDict) -> dict[str, Tensor]: ...

    def spec(self) -> dict[str, Any]: ...

    def optimizer_state(self) -> dict[str, Any]: ...

    def load_optimizer_state(self, state: dict[str, Any]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def constructor_values(agent: nn.Module, name: str, scope: dict[str, Any]) -> dict[str, Any]:
    """Plain values of an agent's constructor arguments (from its ``locals()``) and its name; the device stays out."""
    arguments = [key for key in inspect.signature(type(agent).__init__).parameters if key not in {"self", "device"}]
    values = {key: scope[key] for key in arguments}
    return {"name": name} | {
        key: list(value) if isinstance(value, list | tuple) else value for key, value in values.items()
    }


def transition_batch(
    *,
    observation: Tensor,
    action: Tensor,
    reward: Tensor,
    next_observation: Tensor,
    terminated: Tensor,
    steps: Tensor | None = None,
    **others: Tensor,
) -> TensorDict:
    """The TorchRL layout of a batch of transitions: observation [B, O], action [B, A], reward and terminated [B].

    ``done`` equals ``terminated`` here: what was truncated goes on at the next bar, and its target is bootstrapped.
    ``steps`` [B] is how many steps a reward sums up, each discounted; without it that is one. ``others`` [B, ...] stay
    under their names.
    """
    terminated = terminated.bool().unsqueeze(1)
    following = {
        "observation": next_observation,
        "reward": reward.unsqueeze(1),
        "terminated": terminated,
        "done": terminated,
    }
    fields = {"observation": observation, "action": action, "next": TensorDict(following, batch_size=[len(action)])}
    fields |= others
    if steps is not None:
        fields["steps_to_next_obs"] = steps.unsqueeze(1)
    return TensorDict(fields, batch_size=[len(action)])


def backward_share(
    loss: Tensor, metrics: dict[str, Tensor], *, share: float, extra_loss: Tensor | None
) -> dict[str, Tensor]:
    """The backward pass of ``share`` of a loss, and ``extra_loss`` as it is; returns that share of the metrics."""
    if share != 1.0:
        loss, metrics = share * loss, {name: share * value for name, value in metrics.items()}
    (loss if extra_loss is None else loss + extra_loss).backward()
    return metrics


def make_adam(groups: Iterable[dict[str, Any]], *, eps: float, device: torch.device) -> torch.optim.Adam:
    """Adam (Kingma and Ba, 2015) over ``groups`` of {"params", "lr"}, fused where PyTorch has such a kernel.

    On CUDA its step counters live on the device, so that an update can be captured in a CUDA graph.
    """
    on_cuda = device.type == "cuda"
    return torch.optim.Adam(list(groups), eps=eps, fused=on_cuda or device.type == "cpu", capturable=on_cuda)


@torch.no_grad()
def adam_step(optimizer: torch.optim.Adam) -> None:
    """One step of an optimizer of ``make_adam``, by the kernel of its ``step``.

    Around it ``step`` sorts tensors by device and type, and looks for hooks and profilers: where networks are small
    that takes longer than the kernel.
    """
    groups = [[one for one in group["params"] if one.grad is not None] for group in optimizer.param_groups]
    fused = all(group["fused"] for group in optimizer.param_groups)
    if not fused or not all(optimizer.state[one] for group in groups for one in group):
        optimizer.step()  # there is no such kernel, or the moments are not made yet
        return
    for settings, parameters in zip(optimizer.param_groups, groups, strict=True):
        if not parameters:
            continue
        states = [optimizer.state[parameter] for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=settings["lr"],
            beta1=settings["betas"][0],
            beta2=settings["betas"][1],
            eps=settings["eps"],
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None, *, copies: int = 1) -> Tensor:
    """Scales the gradients, in place, to a total 2-norm of at most ``max_norm`` (None: leaves them); returns the norm
    before. Those of several ``copies``, [copies, ...] each, have a norm for each copy, [copies]. A norm that is not
    finite is not an error here."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if copies > 1:
        gradients = [gradient.view(copies, -1) for gradient in gradients]
        norm = torch.stack([gradient.norm(dim=1) for gradient in gradients]).norm(dim=0)
    else:
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
    if max_norm is not None:
        scale = (max_norm / (norm + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_(gradients, scale if copies == 1 else [scale.unsqueeze(1)] * len(gradients))
    return norm


@torch.no_grad()
def soft_update(target: Sequence[Tensor], online: Sequence[Tensor], tau: float) -> None:
    """target <- (1 - tau) target + tau online, in place (Lillicrap et al. 2016, algorithm 1)."""
    torch._foreach_lerp_(list(target), list(online), tau)


def bootstrap_discount(batch: TensorDict, gamma: float) -> Tensor | float:
    """gamma^k of the next observation [B] in a batch of ``transition_batch``, k steps later; one number where k = 1."""
    steps = batch.get("steps_to_next_obs")
    return gamma if steps is None else gamma ** steps.squeeze(1)


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: Tensor | float) -> Tensor:
    """y = r + discount (1 - terminated) V(s'): only a true end cuts the future off, truncation does not. All [B]."""
    return reward + discount * torch.where(terminated, 0.0, next_value)
