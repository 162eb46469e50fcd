"""Two sides measured in turn, and the JSON line of what came out."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks.machine import machine
from trade_agent.agents.base import Agent
from trade_agent.training import compiling


def seconds(run: Callable[[], object]) -> float:
    """Seconds of the processor: with one thread a side that is wall time, less what other programs take away."""
    started = time.process_time()
    run()
    return time.process_time() - started


def clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What times our side: seconds of the processor, and on a GPU those until it is done."""
    return seconds if device.type == "cpu" else compiling.seconds


def in_turn(ours: Callable[[], float], peer: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Median seconds of both sides, ours and peer's by turns after one run each that does not count.

    Each callable says how long its run took: what a side prepares is not measured.
    """
    ours()
    peer()
    pairs = [(ours(), peer()) for _ in range(repeats)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def first_run(figure: str, run: Callable[[], object]) -> None:
    """Print what the first run takes, in which kernels are built: on the clock, for compilers are other processes."""
    taken = compiling.seconds(run)
    Figure(figure=f"{figure}: first run, which builds its kernels", unit="s on the clock", ours=taken).print()


def gradients_agree(agent: Agent, fused: Agent, batch: TensorDict) -> bool:
    """Losses and gradients of a batch that was prepared, as they are and compiled; of two updates, for TD3's actor has
    its turn in one."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(2):
        for each in (fused, agent):
            each.optimizer.zero_grad()
        mine, other = fused.backward(batch), agent.backward(batch)
        pairs += ((mine[name], other[name]) for name in other)
        for parameter, like in zip(parameters(fused), parameters(agent), strict=True):
            if parameter.grad is not None and like.grad is not None:
                pairs.append((parameter.grad, like.grad))
            elif parameter.grad is not like.grad:
                return False
        fused.count()
        agent.count()
    return all(torch.allclose(mine, other, rtol=1e-5, atol=1e-5) for mine, other in pairs)


def parameters(agent: Agent) -> list[Tensor]:
    """Those that its optimizer trains."""
    return [parameter for group in agent.optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the output. ``ratio`` is how many times faster we are; ``agrees`` False makes it void.

    agrees None: there is nothing that both sides compute alike; ``remark`` says why. ours None: not measured.
    """

    figure: str
    unit: str
    ours: float | None
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    target: float | None = None
    agrees: bool | None = None
    versions: dict[str, str] | None = None
    device: str = "cpu"
    remark: str = ""

    def print(self) -> None:
        line = {
            "figure": self.figure,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "peer": _rounded(self.peer),
            "peer_name": self.peer_name,
            "ratio": None if self.agrees is False else _rounded(self.ratio),
            "target": self.target,
            "agrees": self.agrees,
            "device": self.device,
            "threads": 1,
            "versions": machine() | (self.versions or {}),
        }
        print(json.dumps(line | ({"remark": self.remark} if self.remark else {})), flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
