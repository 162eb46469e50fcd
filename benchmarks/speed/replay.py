"""G12: storing 1024 transitions and drawing a batch of 256 with its observations, against TorchRL's replay buffer.

TorchRL's holds observations, as its examples do; ours holds bar indices and looks the bars up when a batch is drawn.
The second line counts the TensorDict of the agents in, which is part of an update (G9, G10); the third leaves the
observations out.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchrl.data import LazyTensorStorage
from torchrl.data import ReplayBuffer as TorchRLReplayBuffer

from benchmarks.speed.measure import Figure, clock, in_turn
from benchmarks.speed.off_policy import BATCH, FEATURES, PRIVATE, ROWS, make_data
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.training.learner import minibatch, observed

CAPACITY, EXTEND, ROUNDS = 100_000, 1024, 100
KEYS = ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated"))


def measure(repeats: int, device: torch.device) -> None:
    data, generator, seconds = make_data(device), torch.Generator(device).manual_seed(1), clock(device)
    ours = ReplayBuffer(capacity=CAPACITY, private_dim=PRIVATE, action_dim=1, device=device)
    peer = TorchRLReplayBuffer(storage=LazyTensorStorage(CAPACITY, device=device), batch_size=BATCH)
    whole = data.batch()
    chunk = Transitions(*(value[:EXTEND] for value in data.transitions[:-1]))
    their_chunk = whole[:EXTEND]

    def draw(rows: int = BATCH) -> list[Tensor]:
        sample = ours.sample(rows, generator)
        observation = data.observe(sample.t, sample.private)
        following = data.observe(sample.t + sample.steps, sample.next_private)
        return [sample.t, observation, sample.action, following, sample.reward, sample.terminated]

    def draw_tensordict(rows: int = BATCH) -> list[Tensor]:
        batch = observed(minibatch(ours.sample(rows, generator)), data.observe)
        return [batch["t"], *(batch[key] for key in KEYS)]

    def same_rows(draw: Callable[[int], list[Tensor]]) -> bool:
        t, *fields = draw(ROWS)
        stored = peer[t.long()]  # row t of the data is bar t
        return all(torch.equal(field.flatten(), stored[key].flatten()) for key, field in zip(KEYS, fields, strict=True))

    def our_rounds(draw: Callable[[], object]) -> None:
        for _ in range(ROUNDS):
            ours.extend(chunk)
            draw()

    def their_rounds() -> None:
        for _ in range(ROUNDS):
            peer.extend(their_chunk)
            peer.sample()

    ours.extend(data.transitions)
    peer.extend(whole)
    agrees = same_rows(draw) and same_rows(draw_tensordict)  # before rows are overwritten
    wanted = {"cpu": 5.0, "cuda": 10.0}[device.type]
    ways: tuple[tuple[Callable[[], object], float | None, str], ...] = (
        (draw, wanted, ""),
        (draw_tensordict, None, ", as a TensorDict"),
        (partial(ours.sample, BATCH, generator), None, ", not looked up"),
    )
    for way, target, remark in ways:
        side, other = in_turn(partial(seconds, partial(our_rounds, way)), partial(seconds, their_rounds), repeats)
        Figure(
            figure=f"G12 replay, extend {EXTEND} and sample {BATCH}, observations of {FEATURES + PRIVATE}{remark}",
            unit="us",
            ours=1e6 * side / ROUNDS,
            peer=1e6 * other / ROUNDS,
            peer_name="TorchRL ReplayBuffer",
            ratio=other / side,
            target=target,
            agrees=agrees,
            device=device.type,
        ).print()
