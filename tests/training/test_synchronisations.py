"""Nothing in the training loops waits for the device: counted on any machine, and told by CUDA where there is one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed.loops import ALGORITHMS, agent_loop, forecaster_loop
from benchmarks.speed.synchronisations import in_the_loop, waits
from trade_agent.networks import encoders
from trade_agent.training import reinforcement

CPU = torch.device("cpu")
VALUES, MASK = torch.arange(4.0), torch.tensor([True, False, True, False])
NORMALISED = {"normalise_observation": True, "normalise_reward": True}


@pytest.mark.parametrize(
    "wait",
    [
        lambda: VALUES[0].item(),
        lambda: float(VALUES[1]),
        lambda: bool(MASK.any()),
        lambda: int(VALUES[2]),
        lambda: torch.equal(VALUES, VALUES),
        lambda: MASK.nonzero(),
        lambda: VALUES[MASK],
        lambda: VALUES.clone().index_put_((MASK,), torch.zeros(2)),
        lambda: VALUES.masked_select(MASK),
        lambda: VALUES.unique(),
        lambda: torch.unique_consecutive(VALUES),
        lambda: VALUES.repeat_interleave(VALUES.long()),
        lambda: VALUES.tolist(),
        lambda: VALUES.numpy(),
        lambda: np.asarray(VALUES),
        lambda: VALUES.cpu(),
        lambda: torch.tensor([1.0, 2.0]),
    ],
)
def test_what_would_wait_is_counted(wait: Callable[[], Any]) -> None:
    assert sum(waits(wait).values()) == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda: VALUES[VALUES.long()],
        lambda: VALUES.index_select(0, VALUES.long()),
        lambda: torch.where(MASK, VALUES, 0.0),
        lambda: VALUES.masked_fill(MASK, 1.0),
        lambda: (VALUES.to(torch.float64), VALUES.max(), VALUES.clone().copy_(VALUES)),
    ],
)
def test_what_goes_on_at_once_is_not_counted(work: Callable[[], Any]) -> None:
    assert not waits(work)


def test_a_wait_inside_of_the_backward_pass_is_counted() -> None:
    value = torch.ones(3, requires_grad=True)
    value.register_hook(lambda gradient: gradient * gradient.sum().item())
    assert sum(waits(lambda: value.sum().backward()).values()) == 1


def encoded_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row: that each distinct bar is encoded once is for CPUs."""
    monkeypatch.setattr(encoders, "_distinct", lambda t: (t, None, torch.ones_like(t)))


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        *((algorithm, {}) for algorithm in ALGORITHMS),
        *((algorithm, NORMALISED) for algorithm in ALGORITHMS),
        ("ppo", {"policy": "beta"}),
        ("ppo", {"policy": "categorical", "actions": [-1.0, 0.0, 1.0]}),
    ],
)
def test_no_agent_waits_for_the_device(algorithm: str, settings: dict[str, Any]) -> None:
    found = waits(agent_loop(algorithm, joint=False, updates=16, device=CPU, settings=settings).run)
    assert not in_the_loop(found)
    assert sum(found.values()) in (1, 2)  # one look at the metrics, a round of PPO


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nor_does_training_with_its_forecaster(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded_as_on_a_gpu(monkeypatch)
    assert not in_the_loop(waits(agent_loop(algorithm, joint=True, updates=16, device=CPU).run))


def test_the_forecaster_waits_once_an_epoch_and_not_in_its_minibatches() -> None:
    few, many = (waits(forecaster_loop(updates=updates, device=CPU)) for updates in (2, 12))
    assert few == many


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cuda_sees_no_wait_either(algorithm: str, joint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforcement, "hand_on", lambda *_: None)
    loop = agent_loop(algorithm, joint=joint, updates=16, device=torch.device("cuda")).run
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
