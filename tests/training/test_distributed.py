"""Several processes train one model: the ranks stay equal, and equal one process on the joined batches."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tensordict import TensorDict
from torch._dynamo.exc import BackendCompilerFailed

from trade_agent import safe_io
from trade_agent.agents.base import transition_batch
from trade_agent.agents.builders import agent_from_spec
from trade_agent.agents.normalisers import RunningMoments
from trade_agent.agents.processes import Alone
from trade_agent.agents.replay import Transitions
from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import EnsembleModel
from trade_agent.errors import ConfigError, PeerLostError
from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.training import distributed
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.compiling import choose_compiled
from trade_agent.training.dataset import build_dataset, load_data
from trade_agent.training.distributed import World, announced, choose_backend, find_world
from trade_agent.training.learner import minibatch
from trade_agent.training.models import Forecaster
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.signals import StopFlag
from trade_agent.training.stages.context import StageContext
from trade_agent.training.stages.ensemble import train_gate
from trade_agent.training.stages.hybrid import JointLearner
from trade_agent.training.supervised import FitSettings, fit_forecaster, make_targets, samples
from trade_agent.training.unified_manager import grading_policy

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 100


def in_two_processes(work: Callable[[World], Any], folder: Path) -> list[Any]:
    """What `work` returns in each of two ranks: nested dicts of tensors and plain values."""
    multiprocessing.spawn(_rank, args=(work, str(folder)), nprocs=2)
    return [safe_io.load_tensors((folder / f"{rank}.pth").read_bytes(), name="rank") for rank in range(2)]


def _rank(rank: int, work: Callable[[World], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (Path(folder) / f"{rank}.pth").write_bytes(safe_io.dump_tensors(work(World(rank, 2))))
    dist.barrier()
    dist.destroy_process_group()


def double(module: torch.nn.Module) -> torch.nn.Module:
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.double()
    return module


# ------------------------------------------------------------------------------------------------ agents

OBSERVATION, ACTIONS, ROWS = 5, 2, 32


def batches(kind: str) -> list[Any]:
    """The same joined batches in every process, float64."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = []
    for _ in range(UPDATES):
        if kind == "ppo":
            batch = {
                "observation": draw(ROWS, OBSERVATION),
                "raw": draw(ROWS, ACTIONS),
                "log_prob": -2.0 + 0.1 * draw(ROWS),
                "advantage": draw(ROWS),
                "value_target": draw(ROWS),
            }
            made.append(batch)
        else:
            made.append(
                transition_batch(
                    observation=draw(ROWS, OBSERVATION),
                    action=draw(ROWS, ACTIONS).tanh(),
                    reward=draw(ROWS),
                    next_observation=draw(ROWS, OBSERVATION),
                    terminated=draw(ROWS) > 1.0,
                )
            )
    return made


@contextlib.contextmanager
def noise_tape(part: slice) -> Iterator[None]:
    """`torch.randn_like` reads one tape, of which each process sees its own rows."""
    generator = torch.Generator().manual_seed(11)

    def randn_like(like: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.randn(ROWS, *like.shape[1:], generator=generator, dtype=torch.float64)[part]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", randn_like)
        yield


def own_rows(world: World) -> slice:
    share = ROWS // world.size
    return slice(world.rank * share, (world.rank + 1) * share)


def train_agent(kind: str, world: World, *, compiled: bool = False) -> dict[str, Any]:
    torch.manual_seed(3)
    spec = {"name": kind, "observation_dim": OBSERVATION, "action_dim": ACTIONS, "hidden_dims": [8]}
    agent = agent_from_spec(spec | {"normalise_observation": True})
    double(agent)
    world.connect(agent)
    if compiled:
        agent.fuse()
    part = own_rows(world)
    with noise_tape(part):
        for batch in batches(kind):
            own = {key: value[part] for key, value in batch.items()} if isinstance(batch, dict) else batch[part]
            agent.observation_normaliser.update(own["observation"])
            agent.update(own)
    return agent.state_dict()


# ------------------------------------------------------------------------------------------------ hybrid

BARS, ACCOUNT = 400, 3


def train_hybrid(kind: str, world: World, *, compiled: bool = False) -> dict[str, Any]:
    """Joint training on batches of bars, some of which are in both halves of a batch."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(2)
    spec = {"num_features": 3, "window_bars": 4, "num_horizons": 2, "conv_channels": [4], "kernel_size": 3}
    spec |= {"lstm_hidden": 5, "lstm_layers": 1, "dropout": 0.0}
    network = CNNLSTM(**spec)
    double(network).eval()
    width = network.feature_dim + network.num_features + ACCOUNT
    agent = agent_from_spec({"name": kind, "observation_dim": width, "action_dim": 1, "hidden_dims": [8]})
    double(agent)
    world.connect(agent)
    if compiled:
        agent.fuse()
    close = torch.exp(0.01 * torch.randn(BARS, 1, generator=generator, dtype=torch.float64).cumsum(0)).numpy()
    targets = make_targets(close, close > 0, [1, 2], range(BARS - 50))
    learner = JointLearner(
        agent,
        Forecaster(network, spec, (1, 2), targets.scale),
        features=torch.randn(BARS, 1, 3, generator=generator, dtype=torch.float64),
        targets=targets._replace(returns=targets.returns.double()),
        label_stop=BARS - 100,  # the labels of later bars do not count
        forecast_loss_weight=0.5,
        direction_loss_weight=0.5,
        learning_rate=1e-3,
        frozen_updates=10,
        world=world,
    )
    part = own_rows(world)
    with noise_tape(part):
        for _ in range(UPDATES):
            t = torch.randint(4, BARS - 2, (ROWS,), generator=generator)
            t[-3:] = t[0]
            draws = torch.randn(ROWS, 2 * ACCOUNT + 4, generator=generator, dtype=torch.float64)
            learner(hybrid_batch(kind, t[part], draws[part]))
    return agent.state_dict() | {f"forecaster.{name}": value for name, value in network.state_dict().items()}


def hybrid_batch(kind: str, t: torch.Tensor, draws: torch.Tensor) -> TensorDict:
    """A minibatch of rows `t` [B] without observations."""
    account, following, rest = draws.split([ACCOUNT, ACCOUNT, 4], dim=1)
    if kind == "ppo":
        fields = {"raw": rest[:, :1], "log_prob": -2.0 + 0.1 * rest[:, 1], "advantage": rest[:, 2]}
        fields |= {"t": t, "private": account, "value_target": rest[:, 3]}
        return TensorDict(fields, batch_size=[len(t)])
    one = torch.ones(len(t), dtype=torch.int32)
    return minibatch(Transitions(t, account, rest[:, :1].tanh(), rest[:, 1], rest[:, 2] > 1.0, following, one))


# ------------------------------------------------------------------------------------------------ ensemble


def constant(action: float) -> Any:
    return lambda t, account: torch.full((len(t), 1), action)


def train_the_gate(world: World) -> dict[str, Any]:
    """Over the whole path in every process: that is the joined batch."""
    options = ["stage=ensemble", "trainer=smoke", "device=cpu", "preprocessing=minimal", "data.start=2011-06-01"]
    options += ["evaluation.min_bars=300", f"trainer.gate_epochs={UPDATES}"]
    config = load_config(compose_config(options), "")
    loaded = load_data(config.data, config.evaluation)
    dataset = build_dataset(loaded, config, window_bars=4, horizons=[1], device=torch.device("cpu"))
    dataset = dataclasses.replace(dataset, features=dataset.features.double())
    context = StageContext(
        dataset=dataset,
        trainer=config.trainer,
        evaluation=config.evaluation,
        grading=grading_policy(config.grading),
        episode_bars=32,
        seed=1,
        device=torch.device("cpu"),
        compiled=False,
        progress=ProgressReporter(quiet=True),
        folder=Path(),
        checkpoints=Checkpoints(None, every_seconds=1e9, stop=StopFlag(""), world=world),
        world=world,
        num_trials=1,
    )
    model = EnsembleModel(name="ensemble", combiner="gate", gate_hidden_sizes=[8], gate_learning_rate=0.01)
    members = [constant(1.0), constant(-1.0), constant(0.3)]
    torch.manual_seed(4)
    torch.set_default_dtype(torch.float64)
    try:
        gate, _, history = train_gate(context, model, members, dataset.split.train, torch.Generator())
    finally:
        torch.set_default_dtype(torch.float32)
    return gate.state_dict() | {"growth": torch.tensor(history["growth"], dtype=torch.float64)}


# ------------------------------------------------------------------------------------------------ forecaster


def train_forecaster(world: World) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    close = torch.exp(0.01 * torch.randn(200, 1, generator=generator, dtype=torch.float64).cumsum(0)).numpy()
    targets = make_targets(close, close > 0, [1, 2], range(150))
    targets = targets._replace(returns=targets.returns.double())
    torch.manual_seed(2)
    network = CNNLSTM(
        num_features=3,
        window_bars=4,
        num_horizons=2,
        conv_channels=[4],
        kernel_size=3,
        lstm_hidden=5,
        lstm_layers=1,
        dropout=0.0,
    )
    double(network)
    draw = torch.Generator().manual_seed(9)
    result = fit_forecaster(
        network,  # type: ignore[arg-type]
        series=torch.randn(200, 1, 3, generator=generator, dtype=torch.float64),
        targets=targets,
        train=samples(range(5, 146), targets.valid),  # 141 samples in batches of 17: shares are not all equal
        validation=samples(range(152, 196), targets.valid),
        settings=FitSettings(
            epochs=12, patience=12, batch_size=17, learning_rate=1e-2, weight_decay=1e-4, direction_weight=0.5
        ),
        generator=draw,
        session=Checkpoints(None, every_seconds=1e9, stop=StopFlag(""), world=world).session("forecaster", draw),
    )
    return {"network": network.state_dict(), "losses": [*result.train_loss, *result.validation_loss]}


# ------------------------------------------------------------------------------------------------ what must hold

COMPILED: dict[str, Callable[[World], dict[str, Any]]] = {
    "compiled ppo": functools.partial(train_agent, "ppo", compiled=True),
    "compiled td3": functools.partial(train_agent, "td3", compiled=True),
    "compiled hybrid sac": functools.partial(train_hybrid, "sac", compiled=True),  # its forecaster is frozen at first
}
COMPILER = shutil.which("g++")
WORKS: dict[str, Callable[[World], dict[str, Any]]] = {
    **{kind: functools.partial(train_agent, kind) for kind in ("ppo", "sac", "td3")},
    **{f"hybrid {kind}": functools.partial(train_hybrid, kind) for kind in ("ppo", "sac", "td3")},
    **COMPILED,
    "gate": train_the_gate,
    "forecaster": train_forecaster,
}


def all_works(world: World) -> dict[str, Any]:
    return {name: work(world) for name, work in WORKS.items() if COMPILER or name not in COMPILED}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two ranks has after all works: starting processes takes longer than the works."""
    return in_two_processes(all_works, tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name in WORKS if name != "forecaster"])
def test_two_processes_are_equal_and_equal_one_on_the_joined_batches(ranks: list[Any], name: str) -> None:
    if name in COMPILED and not COMPILER:
        pytest.skip("torch.compile needs a C++ compiler")
    first, second = (rank[name] for rank in ranks)
    alone = WORKS[name.removeprefix("compiled ")](World())
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.distributed
def test_the_forecaster_of_two_processes_equals_that_of_one(ranks: list[Any]) -> None:
    first, second = (rank["forecaster"] for rank in ranks)
    alone = train_forecaster(World())
    for name, value in alone["network"].items():
        assert torch.equal(first["network"][name], second["network"][name]), name
        torch.testing.assert_close(first["network"][name], value, rtol=1e-9, atol=1e-9, msg=name)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-6)  # summed up in float32


# ------------------------------------------------------------------------------------------------ device.compile=auto


def choose_to_compile(world: World, *, folder: str, failing: int | None = None) -> dict[str, Any]:
    """Whether to compile, and the rounds that were timed. Compiled ones take no time, others 10 ms in the first process
    and none in the second; in process `failing` there is no compiler."""
    rounds = []

    def make_round(compiled: bool) -> Callable[[], object]:
        def one() -> None:
            rounds.append(compiled)
            if compiled and world.rank == failing:
                raise BackendCompilerFailed(lambda: None, FileNotFoundError("g++"), None)
            if not compiled and world.main:
                until = time.perf_counter() + 0.01
                while time.perf_counter() < until:
                    pass

        return one

    progress = ProgressReporter(quiet=True)
    path = Path(folder) / str(world.rank) / "compile.json"
    chosen = choose_compiled(path, make_round=make_round, rounds=1000, world=world, progress=progress)
    return {"chosen": chosen, "rounds": rounds}


@pytest.mark.distributed
def test_processes_choose_together_and_keep_the_choice(tmp_path: Path) -> None:
    for name in ("first", "again", "0", "1"):
        (tmp_path / name).mkdir()
    work = functools.partial(choose_to_compile, folder=str(tmp_path))
    first = in_two_processes(work, tmp_path / "first")
    assert [rank["chosen"] for rank in first] == [True, True]
    assert all(set(rank["rounds"]) == {True, False} for rank in first)
    assert not (tmp_path / "1/compile.json").exists()  # the first process alone writes it, and reads it
    record = json.loads((tmp_path / "0/compile.json").read_text())
    assert record["eager_seconds"] >= 0.01  # of the first process
    again = in_two_processes(work, tmp_path / "again")
    assert again == [{"chosen": True, "rounds": []}] * 2


@pytest.mark.distributed
def test_processes_stay_eager_where_one_has_no_compiler(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    ranks = in_two_processes(functools.partial(choose_to_compile, folder=str(tmp_path), failing=1), tmp_path)
    assert [rank["chosen"] for rank in ranks] == [False, False]
    record = json.loads((tmp_path / "0/compile.json").read_text())
    assert record == {"compile": False, "reason": "nothing can be compiled here: FileNotFoundError"}


# ------------------------------------------------------------------------------------------------ the pieces


def test_a_number_that_cannot_be_divided_is_refused() -> None:
    assert World(1, 4).share(8, "model.num_envs") == 2
    with pytest.raises(ConfigError, match="model.num_envs=9 cannot be divided among 4 processes"):
        World(1, 4).share(9, "model.num_envs")


def test_moments_of_one_process_are_those_of_its_rows() -> None:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double()
    moments = RunningMoments(3)
    assert isinstance(moments.processes, Alone)
    for block in rows.split(7):
        moments.update(block)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.variance, rows.var(0, correction=0))


def lose_the_other(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2)
    assert world.any(rank == 1, False) == [True, False]
    if rank == 1:
        os._exit(0)  # at once, as a killed process goes
    with pytest.raises(PeerLostError, match="another process of this run died or cannot be reached"):
        list(map(world.mean, itertools.repeat(torch.zeros(3))))
    os._exit(0)  # there is nobody to say good-bye to


@pytest.mark.distributed
def test_who_waits_for_a_dead_process_is_told_so(tmp_path: Path) -> None:
    multiprocessing.spawn(lose_the_other, args=(str(tmp_path),), nprocs=2)


@pytest.mark.parametrize(("rank", "step"), [("0", lambda: find_world(3600.0)), ("1", announced)])
def test_processes_wait_for_each_other_to_start_as_long_whatever_the_config_says(
    monkeypatch: pytest.MonkeyPatch, rank: str, step: Callable[[], Any]
) -> None:
    """The first one for the other, and the other for what the first one announces. Here neither comes."""
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)  # as the agent of torchrun has
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": rank, "WORLD_SIZE": "2"}
    for name, value in (place | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "MEETING_SECONDS", 1.0)
    monkeypatch.setattr(distributed, "meeting_place", functools.cache(distributed.meeting_place.__wrapped__))
    with pytest.raises(PeerLostError, match="another process of this run died or cannot be reached"):
        step()
    assert not dist.is_initialized()


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "cpu:gloo,cuda:nccl")])
def test_each_of_two_processes_takes_a_gpu_of_its_own_where_there_are_as_many(
    monkeypatch: pytest.MonkeyPatch, gpus: int, backend: str
) -> None:
    taken: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert choose_backend() == backend
    assert taken == {0: [], 1: [0], 2: [1]}[gpus]
