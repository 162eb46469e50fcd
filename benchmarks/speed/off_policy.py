"""What G9 and G10 share: one gradient step, drawing its batch included, on the same net and transitions everywhere."""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage
from torchrl.data import ReplayBuffer as TorchRLReplayBuffer
from torchrl.objectives import LossModule, SoftUpdate

from benchmarks.speed.measure import Figure, clock, first_run, gradients_agree, in_turn
from benchmarks.speed.peer import Peer, reported_if_missing
from trade_agent.agents.base import transition_batch
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3
from trade_agent.training.capture import CapturedLearner
from trade_agent.training.graphs import CudaGraphs
from trade_agent.training.learner import Learner, minibatch

HIDDEN, BATCH, FEATURES, PRIVATE = [256, 256], 256, 32, 6
ROWS = 10_000
UPDATES = 20  # in one run
Arrays = dict[str, np.ndarray]
Learn = Callable[[TensorDict], dict[str, Tensor]]


class Data(NamedTuple):
    """A replay buffer over a table of features [T, F], and the same transitions with their observations."""

    table: Tensor
    replay: ReplayBuffer
    transitions: Transitions

    def observe(self, t: Tensor, private: Tensor) -> Tensor:
        return torch.cat((self.table.index_select(0, t), private), dim=-1)

    def arrays(self, rows: int = ROWS) -> Arrays:
        data = Transitions(*(value[:rows] for value in self.transitions[:-1]))
        return {
            "observation": self.observe(data.t, data.private).numpy(force=True),
            "next_observation": self.observe(data.t + 1, data.next_private).numpy(force=True),
            "action": data.action.numpy(force=True),
            "reward": data.reward.numpy(force=True),
            "terminated": data.terminated.numpy(force=True),
        }

    def batch(self, rows: int = ROWS) -> TensorDict:
        """The same in the layout of the agents, where the table is."""
        arrays = self.arrays(rows).items()
        return transition_batch(**{key: torch.as_tensor(value, device=self.table.device) for key, value in arrays})


def make_data(device: torch.device | str = "cpu") -> Data:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS + 1, FEATURES, generator=generator)
    transitions = Transitions(
        t=torch.arange(ROWS, dtype=torch.int32),
        private=torch.randn(ROWS, PRIVATE, generator=generator),
        action=torch.rand(ROWS, 1, generator=generator) * 1.8 - 0.9,
        reward=torch.randn(ROWS, generator=generator),
        terminated=torch.rand(ROWS, generator=generator) < 0.05,
        next_private=torch.randn(ROWS, PRIVATE, generator=generator),
    )
    transitions = Transitions(*(value.to(device) for value in transitions[:-1]))
    replay = ReplayBuffer(capacity=ROWS, private_dim=PRIVATE, action_dim=1, device=device)
    replay.extend(transitions)
    return Data(table.to(device), replay, transitions)


def measure_updates(
    figure: str,
    agent: SAC | TD3,
    loss: LossModule,
    *,
    targets: tuple[float, float | None],
    repeats: int,
    device: torch.device,
) -> None:
    """Against Stable-Baselines3 and against TorchRL's loss module with its own replay buffer.

    On a GPU ours is captured: what is recorded is recorded in the run that does not count.
    """
    data, generator = make_data(device), torch.Generator(device).manual_seed(1)
    as_torchrl = losses_of_torchrl_agree(agent, loss, data)  # before either learns

    def updates(learn: Learn) -> list[Any]:
        return [learn(minibatch(data.replay.sample(BATCH, generator))) for _ in range(UPDATES)]

    def timed(learn: Learn) -> Callable[[], float]:
        return lambda: clock(device)(partial(updates, learn))

    sides: list[tuple[Learn, str, tuple[float | None, float | None]]]
    if device.type == "cuda":
        sides = [(CapturedLearner(Learner(agent, data.observe), CudaGraphs(generator)), "", targets)]
        as_eager = True  # capturing compares them itself
    else:
        torch.compiler.reset()
        fused = copy.deepcopy(agent)
        fused.fuse()
        sides = [(Learner(fused, data.observe), "", targets), (Learner(agent, data.observe), ", eager", (None, None))]
        first_run(figure, partial(updates, sides[0][0]))
        fused.load_state_dict(agent.state_dict())
        as_eager = gradients_agree(agent, fused, agent.prepare(data.batch(BATCH)))
    with (
        reported_if_missing(f"{figure}, against Stable-Baselines3", "Stable-Baselines3"),
        tempfile.TemporaryDirectory() as folder,
        Peer("stable_baselines3") as peer,
    ):
        agrees = losses_agree(agent, data, peer, Path(folder))
        path = _save(Path(folder, "transitions.npz"), data.arrays())
        versions = peer.ask("off_policy", algorithm=agent.name, path=path, hidden=HIDDEN)
        for learn, way, (target, _) in sides:
            side, other = in_turn(timed(learn), lambda: peer.ask("updates", count=UPDATES, batch_size=BATCH), repeats)
            _line(figure, way, side, other, "Stable-Baselines3", target, agrees and as_eager, device, versions)
    theirs = torchrl_updates(loss, data)
    for learn, way, (_, target) in sides:
        side, other = in_turn(timed(learn), lambda: clock(device)(theirs), repeats)
        _line(figure, way, side, other, "TorchRL loss module", target, as_torchrl and as_eager, device)


def losses_of_torchrl_agree(agent: SAC | TD3, loss: LossModule, data: Data) -> bool:
    """All losses of one batch with the same weights and the same noise."""
    batch = data.batch(BATCH)
    torch.manual_seed(0)
    theirs = loss(batch.clone())
    torch.manual_seed(0)
    batch = agent.prepare(batch)
    if isinstance(agent, SAC):
        losses = agent.losses(batch)
        ours = {"loss_actor": losses.actor, "loss_qvalue": losses.critic, "loss_alpha": losses.alpha}
    else:
        ours = {"loss_actor": agent.actor_loss(batch), "loss_qvalue": agent.critic_loss(batch)[0]}
    return all(torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-5) for name, value in ours.items())


def losses_agree(agent: SAC | TD3, data: Data, peer: Peer, folder: Path) -> bool:
    """Losses of one batch with our weights in the peer's networks, nothing drawn: no noise, no entropy."""
    quiet = type(agent)(**{key: value for key, value in _quiet_spec(agent).items() if key != "name"})
    weights = peer_weights(quiet)
    if isinstance(quiet, SAC):
        with torch.no_grad():  # a deviation of exp(-20)
            last = quiet.policy.network[-1]  # type: ignore[index]
            last.weight[1:], last.bias[1:] = 0.0, -20.0
        weights = peer_weights(quiet)
    path = _save(folder / "batch.npz", data.arrays(BATCH))
    answer = peer.ask(
        "losses", algorithm=quiet.name, path=path, hidden=HIDDEN, weights=_save(folder / "weights.npz", weights)
    )
    batch = transition_batch(**{key: torch.as_tensor(value) for key, value in data.arrays(BATCH).items()})
    if isinstance(quiet, SAC):
        losses = quiet.losses(quiet.prepare(batch))
        actor, critic = losses.actor, 0.5 * losses.critic  # Stable-Baselines3 halves the sum of both critics
    else:
        actor, critic = quiet.actor_loss(batch), quiet.critic_loss(quiet.prepare(batch))[0]
    pairs = ((actor.item(), answer["actor"]), (critic.item(), answer["critic"]))
    return all(abs(mine - other) <= 1e-5 * max(1.0, abs(other)) for mine, other in pairs)


def _quiet_spec(agent: SAC | TD3) -> dict[str, Any]:
    return agent.spec() | ({"initial_alpha": 1e-8} if agent.name == "sac" else {"target_noise": 0.0})


def peer_weights(agent: SAC | TD3) -> Arrays:
    """Our weights under the names of Stable-Baselines3's policies; its targets start equal, as ours do."""
    named: dict[str, Tensor] = {}

    def add(prefix: str, network: nn.Module) -> None:
        named.update({f"{prefix}.{key}": value for key, value in network.state_dict().items()})

    for index in range(2):
        add(f"critic.qf{index}", agent.critic.member(index))
        add(f"critic_target.qf{index}", agent.target_critic.member(index))
    if isinstance(agent, SAC):
        *trunk, last = agent.policy.network.children()
        add("actor.latent_pi", nn.Sequential(*trunk))
        for name, rows in (("mu", slice(0, 1)), ("log_std", slice(1, 2))):
            weight, bias = last.parameters()
            named |= {f"actor.{name}.weight": weight[rows], f"actor.{name}.bias": bias[rows]}
    else:
        add("actor.mu", agent.actor)
        add("actor_target.mu", agent.target_actor)
    return {key: value.detach().numpy() for key, value in named.items()}


def torchrl_updates(loss: LossModule, data: Data) -> Any:
    """The loop of TorchRL's examples: sample, losses, one backward pass, Adam, SoftUpdate."""
    replay = TorchRLReplayBuffer(storage=LazyTensorStorage(ROWS, device=data.table.device), batch_size=BATCH)
    replay.extend(data.batch())
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)
    follow = SoftUpdate(loss, eps=0.995)
    delay = 2 if "loss_alpha" not in loss.out_keys else 1

    def run() -> None:
        for index in range(UPDATES):
            losses = loss(replay.sample())
            names = [name for name in loss.out_keys if name.startswith("loss_")]
            if index % delay:
                names.remove("loss_actor")
            optimizer.zero_grad()
            sum(losses[name] for name in names).backward()
            optimizer.step()
            if index % delay == 0:
                follow.step()

    return run


def _save(path: Path, arrays: Arrays) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def _line(
    figure: str,
    way: str,
    ours: float,
    peer: float,
    name: str,
    target: float | None,
    agrees: bool,
    device: torch.device,
    versions: dict[str, str] | None = None,
) -> None:
    Figure(
        figure=f"{figure}, batch {BATCH}, {HIDDEN}, against {name}{way}",
        unit="ms/update",
        ours=1e3 * ours / UPDATES,
        peer=1e3 * peer / UPDATES,
        peer_name=name,
        ratio=peer / ours,
        target=target,
        agrees=agrees,
        versions=versions,
        device=device.type,
    ).print()
