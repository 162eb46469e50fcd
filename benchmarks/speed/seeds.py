"""G15: agents of one configuration in one batch (`stage.copies`) against as many runs one after another.

Whole training loops, their steps of the market included and their set-up left out. On a GPU both sides are captured,
and recording is included. Then updates of the same batch of agents, compiled and as it is.
"""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from benchmarks.speed.loops import ALGORITHMS, BATCH, agent_loop
from benchmarks.speed.measure import Figure, clock, first_run, gradients_agree, in_turn
from trade_agent.agents.base import Agent, transition_batch
from trade_agent.agents.copies import agents_from_spec, members_of
from trade_agent.training.graphs import CudaGraphs
from trade_agent.training.models import agent_from_state
from trade_agent.training.reinforcement import copy_state

SEEDS, OBSERVATION = 16, 16
UPDATES, UPDATES_ON_GPU = 104, 2_000  # of each agent; recording shall not decide it
UPDATES_TO_COMPILE = 20


def measure(repeats: int, device: torch.device) -> None:
    updates = UPDATES_ON_GPU if device.type == "cuda" else UPDATES
    for algorithm in ALGORITHMS:
        seeds_in_one_batch(algorithm, seeds=SEEDS, updates=updates, device=device, repeats=repeats)
        compiled_seeds(algorithm, seeds=SEEDS, device=device, repeats=repeats)


def seeds_in_one_batch(algorithm: str, *, seeds: int, updates: int, device: torch.device, repeats: int) -> None:
    on_gpu, took = device.type == "cuda", clock(device)
    loop = partial(
        agent_loop, algorithm, joint=False, updates=updates, device=device, graphs=CudaGraphs if on_gpu else None
    )
    ours, other = in_turn(
        lambda: took(loop(copies=seeds).run), lambda: sum(took(loop().run) for _ in range(seeds)), repeats
    )
    Figure(
        figure=f"G15 {seeds} {algorithm} agents in one batch, batch {BATCH} each",
        unit="updates/s of all",
        ours=seeds * updates / ours,
        peer=seeds * updates / other,
        peer_name="one after another",
        ratio=other / ours,
        target=8.0 if on_gpu else None,
        agrees=losses_agree(algorithm, seeds, device),
        device=device.type,
        remark="" if on_gpu else "the target is one of a GPU",
    ).print()


def compiled_seeds(algorithm: str, *, seeds: int, device: torch.device, repeats: int) -> None:
    """Updates of the same stack, compiled and as it is."""
    torch.compiler.reset()
    stack, fused = (make_stack(algorithm, seeds, device) for _ in range(2))
    fused.fuse()
    batch, took = stack.prepare(batch_of_noise(seeds * BATCH, device)), clock(device)
    figure = f"G15 {seeds} {algorithm} agents in one batch, batch {BATCH} each, compiled"

    def updates(agent: Agent) -> None:
        for _ in range(UPDATES_TO_COMPILE):
            agent.update(batch)

    first_run(figure, partial(updates, fused))
    fused.load_state_dict(stack.state_dict())
    agrees = gradients_agree(stack, fused, batch)
    ours, other = in_turn(lambda: took(partial(updates, fused)), lambda: took(partial(updates, stack)), repeats)
    Figure(
        figure=figure,
        unit="updates/s of all",
        ours=UPDATES_TO_COMPILE * seeds / ours,
        peer=UPDATES_TO_COMPILE * seeds / other,
        peer_name="the same, eager",
        ratio=other / ours,
        agrees=agrees,
        device=device.type,
    ).print()


def make_stack(algorithm: str, seeds: int, device: torch.device) -> Agent:
    torch.manual_seed(0)
    return agents_from_spec(spec_of(algorithm), seeds, device=device)


def spec_of(algorithm: str) -> dict[str, Any]:
    return {"name": algorithm, "observation_dim": OBSERVATION, "action_dim": 1}


def losses_agree(algorithm: str, seeds: int, device: torch.device) -> bool:
    """Whether the metrics of an update are the mean of those of the agents by themselves, on the same batches."""
    stack = make_stack(algorithm, seeds, device)
    alone = [
        agent_from_state({"spec": spec_of(algorithm), "state": copy_state(one.state_dict())}, device)
        for one in members_of(stack)
    ]
    batch = stack.prepare(batch_of_noise(seeds * BATCH, device))
    together = stack.backward(batch)
    parts = [agent.backward(batch[index::seeds]) for index, agent in enumerate(alone)]
    means = {name: torch.stack([metrics[name] for metrics in parts]).mean() for name in together}
    return all(torch.allclose(value, means[name], rtol=1e-5, atol=1e-5) for name, value in together.items())


def batch_of_noise(rows: int, device: torch.device) -> TensorDict:
    """What any of the agents reads."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, device=device)

    batch = transition_batch(
        observation=noise(OBSERVATION),
        action=noise(1).tanh(),
        reward=noise(),
        next_observation=noise(OBSERVATION),
        terminated=noise() < -1.0,
    )
    batch["raw"] = batch["action"].atanh()
    for name in ("log_prob", "advantage", "value_target"):
        batch[name] = noise()
    return batch
