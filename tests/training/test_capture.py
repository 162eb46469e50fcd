"""Captured updates are the updates: with a tape of operators in the place of CUDA graphs, and with CUDA graphs."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.loops import ALGORITHMS, AgentLoop, agent_loop
from tests.training.test_checkpoint import StopAt
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import StoppedError
from trade_agent.networks import encoders
from trade_agent.training import agent_loop as agent_loop_module
from trade_agent.training.capture import CapturedLearner, graphs_of
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.distributed import World
from trade_agent.training.graphs import CudaGraphs, Tensors
from trade_agent.training.reinforcement import LearningRates
from trade_agent.training.signals import StopFlag
from trade_agent.training.stages.hybrid import JointLearner
from trade_agent.training.unified_manager import UnifiedTrainingManager

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Operators with the tensors that they read and write. Repeated like a CUDA graph: on the same memory, without any
    Python in between, whatever the program would do by now."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, result, torch.is_grad_enabled()))
        return result

    def repeat(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, result, grad in self.operators:
                with torch.set_grad_enabled(grad):  # an LSTM keeps what its backward pass needs only with it
                    again = func(*args, **kwargs)
                if all(value.alias_info is None for value in func._schema.returns):  # no view, nothing in place
                    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor):
                            old.copy_(new)


class Tapes:
    """Stands for `CudaGraphs`. Recording runs the work, which CUDA does not: what it changes has to be put back."""

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators = generators
        self.recorded = 0

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        with Tape() as tape:
            result = work()
        self.recorded += 1
        tape.operators = [entry for entry in tape.operators if self.kept(str(entry[0]))]
        return tape.repeat, result

    def kept(self, operator: str) -> bool:
        return True


class WithoutOptimizer(Tapes):
    def kept(self, operator: str) -> bool:
        return "_fused_adam" not in operator


class WithoutCopies(Tapes):
    """Accounts do not move."""

    def kept(self, operator: str) -> bool:
        return "aten.copy_" not in operator


class Impossible(Tapes):
    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


def prepared(algorithm: str, **changes: Any) -> AgentLoop:
    loop = agent_loop(algorithm, **({"joint": False, "updates": 16, "device": CPU} | changes))
    for group in loop.learner.agent.optimizer.param_groups:
        group["capturable"] = True  # as on a GPU: the falling learning rate lies in a tensor
    if isinstance(loop.learner, JointLearner):
        loop.learner.frozen_updates = 5
    return loop


def trained(algorithm: str, **changes: Any) -> list[Tensor]:
    """All that training changes, after it."""
    loop = prepared(algorithm, **changes)
    loop.run()
    updates = torch.tensor(getattr(loop.learner.agent, "updates", 0))
    random = (torch.get_rng_state(), loop.market.generator.get_state())
    return [*loop.learner.changed(), *loop.market.state_dict().values(), updates, *random]


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for value, seen in zip(one, other, strict=True):
        assert torch.equal(value, seen)


@pytest.fixture(autouse=True)
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are encoded as on a GPU: how many of a minibatch are distinct is no constant."""
    monkeypatch.setattr(encoders, "_distinct", lambda t: (t, None, torch.ones_like(t)))


class Made:
    """Makes the graphs of a run, and keeps them."""

    def __init__(self, kind: type[Any] = Tapes) -> None:
        self.kind = kind

    def __call__(self, generator: torch.Generator) -> Any:
        self.graphs = self.kind(generator)
        return self.graphs


# Of the market: steps of the agent, and random ones at first.
@pytest.mark.parametrize(
    ("algorithm", "joint", "settings", "updates", "steps"),
    [
        ("ppo", False, {"policy": "beta", "entropy_coefficient": 0.01}, 1, 1),
        ("ppo", False, {"policy": "categorical", "actions": [-1.0, 0.0, 1.0], "normalise_reward": True}, 1, 1),
        ("ppo", True, {"normalise_observation": True}, 1, 1),
        ("sac", False, {"normalise_reward": True}, 1, 2),
        ("sac", True, {}, 1, 2),
        ("td3", False, {"policy_delay": 1, "layer_norm": True}, 1, 2),
        ("td3", True, {"normalise_observation": True}, 2, 2),
    ],
)
def test_a_replayed_run_is_the_run(
    algorithm: str,
    joint: bool,
    settings: dict[str, Any],
    updates: int,
    steps: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Made()
    replayed = trained(algorithm, joint=joint, settings=settings, graphs=made)
    assert not caplog.messages
    assert made.graphs.recorded == updates * (1 + joint) + steps  # with the forecaster frozen, and not
    assert_same_bits(trained(algorithm, joint=joint, settings=settings), replayed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_replayed_run_of_several_agents_is_the_run(algorithm: str, caplog: pytest.LogCaptureFixture) -> None:
    changes: dict[str, Any] = {"copies": 3, "settings": {"normalise_observation": True, "normalise_reward": True}}
    made = Made()
    replayed = trained(algorithm, graphs=made, **changes)
    assert not caplog.messages
    assert made.graphs.recorded == (4 if algorithm == "td3" else 2 if algorithm == "ppo" else 3)
    assert_same_bits(trained(algorithm, **changes), replayed)


def test_each_size_of_a_minibatch_is_recorded_by_itself() -> None:
    learner, graphs = prepared("ppo").learner, Tapes()
    captured = CapturedLearner(learner, graphs)
    fields = {name: torch.zeros(20) for name in ("log_prob", "advantage", "value_target")}
    fields |= {"t": torch.arange(20), "private": torch.randn(20, 6), "raw": torch.randn(20, 1)}
    batch = TensorDict(fields | {"advantage": torch.randn(20)}, batch_size=[20])
    for rows in (20, 20, 7, 20, 7, 7):
        metrics = captured(batch[:rows])
    assert graphs.recorded == 2
    assert set(metrics) == {"loss_actor", "loss_critic", "entropy", "approx_kl", "clip_fraction", "grad_norm"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (WithoutOptimizer, "an update is not replayed as a CUDA graph: a replay does not come to"),
        (WithoutCopies, "a step of the market is not replayed as a CUDA graph: a replay does not come to"),
        (Impossible, "cannot be recorded: operation not permitted"),
    ],
)
def test_what_cannot_be_replayed_is_done_as_it_is(
    algorithm: str, kind: type[Tapes], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = trained(algorithm, graphs=Made(kind))
    assert any(why in line for line in caplog.messages)
    assert len(caplog.messages) <= 2  # one for the updates, one for the steps
    assert_same_bits(trained(algorithm), seen)


@pytest.mark.parametrize(("algorithm", "boundaries"), [("ppo", 2), ("sac", 3), ("td3", 3)])
def test_a_run_that_is_stopped_and_goes_on_ends_alike(algorithm: str, boundaries: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"updates": 24, "settings": {"normalise_reward": True}}
    stops = 0
    while True:
        checkpoints = Checkpoints(tmp_path, every_seconds=math.inf, stop=StopAt(boundaries))
        try:
            seen = trained(algorithm, graphs=Tapes, checkpoints=checkpoints, **changes)
            break
        except StoppedError:
            stops += 1
    assert stops > 0
    assert_same_bits(trained(algorithm, **changes), seen)


def test_a_learning_rate_on_the_device_keeps_its_place_and_means_the_same() -> None:
    loop = prepared("sac")
    rates = LearningRates(loop.learner.agent.optimizer, "linear", 0.5)
    group = loop.learner.agent.optimizer.param_groups[0]
    rates.set(0.0)
    tensor = group["lr"]
    assert float(tensor) == pytest.approx(1.5e-4)
    group["lr"] = torch.tensor(7.0)  # as a checkpoint does
    rates.set(0.75)
    assert group["lr"] is tensor
    assert float(tensor) == pytest.approx(0.375e-4)


def test_where_there_are_no_graphs_training_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert graphs_of(torch.Generator(), world=World()) is None
    assert [line.startswith("device.capture: only one process on a GPU") for line in caplog.messages] == [True]


def with_tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tapes]:
    """The graphs of the runs from here on."""
    made: list[Tapes] = []

    def graphs(generator: torch.Generator, *, world: World) -> Tapes:
        assert world.size == 1
        made.append(Tapes(generator))
        return made[-1]

    monkeypatch.setattr(agent_loop_module, "graphs_of", graphs)
    return made


@pytest.mark.parametrize("chosen", [True, False])
def test_the_option_reaches_a_stage(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    made = with_tapes(monkeypatch)
    run(tmp_path, "stage=rl", "model=sac", f"device.capture={str(chosen).lower()}")
    assert [graphs.recorded for graphs in made] == [3] * chosen


def test_of_a_gymnasium_task_the_updates_are_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_tapes(monkeypatch)
    options = ("stage=rl", "env=gymnasium", "model=sac", "device=cpu", "device.capture=true", "monitoring=off")
    sizes = ("trainer.off_policy_env_steps=240", "trainer.validation_checks=1", "model.num_envs=2")
    episodes = ("env.evaluation_episodes=1", "env.check_episodes=1", f"paths.outputs={tmp_path}")
    config = load_config(compose_config([*options, *sizes, *episodes]))
    UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True).run()
    assert [graphs.recorded for graphs in made] == [1]


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_cuda(algorithm: str, graphs: Any, **changes: Any) -> AgentLoop:
    settings: dict[str, Any] = {"joint": False, "updates": 104, "device": torch.device("cuda")}
    return agent_loop(algorithm, graphs=graphs, **(settings | changes))


def assert_close(one: AgentLoop, other: AgentLoop) -> None:
    for expected, seen in zip(
        [*one.learner.changed(), *one.market.state_dict().values()],
        [*other.learner.changed(), *other.market.state_dict().values()],
        strict=True,
    ):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cuda_graphs_repeat_the_run(algorithm: str, copies: int, caplog: pytest.LogCaptureFixture) -> None:
    plain, replayed = (on_cuda(algorithm, graphs, copies=copies) for graphs in (None, CudaGraphs))
    states = []
    for loop in (plain, replayed):
        torch.manual_seed(3)
        loop.run()
        states.append((torch.cuda.get_rng_state(), loop.market.generator.get_state()))
    assert not caplog.messages
    assert_close(plain, replayed)
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@pytest.mark.gpu
@on_a_gpu
def test_what_cuda_cannot_capture_is_done_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def reads(step: Callable[[Tensors], Tensors], metrics: Tensors) -> Tensors:
        assert float(metrics["q_mean"]) < 1e6
        return step(metrics)

    loops = on_cuda("sac", None), on_cuda("sac", CudaGraphs)
    for loop in loops:
        loop.learner.step = partial(reads, loop.learner.step)  # type: ignore[method-assign]
        torch.manual_seed(3)
        loop.run()
    assert [line.startswith("device.capture: an update is not replayed") for line in caplog.messages] == [True]
    assert_close(*loops)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_joint_training_can_be_captured(algorithm: str, caplog: pytest.LogCaptureFixture) -> None:
    on_cuda(algorithm, CudaGraphs, joint=True, updates=24).run()
    assert not caplog.messages


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_captured_run_goes_on_after_a_stop(algorithm: str, tmp_path: Path) -> None:
    def loop(stop: StopFlag, folder: Path | None) -> AgentLoop:
        checkpoints = Checkpoints(folder, every_seconds=math.inf, stop=stop)
        return on_cuda(algorithm, CudaGraphs, updates=24, checkpoints=checkpoints)

    whole = loop(StopFlag(""), None)
    whole.run()
    with pytest.raises(StoppedError):
        loop(StopAt(2), tmp_path).run()
    rest = loop(StopFlag(""), tmp_path)
    rest.run()
    assert_close(whole, rest)
