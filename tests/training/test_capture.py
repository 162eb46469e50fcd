"""Captured updates are the updates: with a tape of operators in the place of CUDA graphs, and with CUDA graphs."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.loops import ALGORITHMS, AgentLoop, agent_loop
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import StoppedError
from trade_agent.networks import encoders
from trade_agent.training import agent_loop as agent_loop_module
from trade_agent.training.capture import CapturedLearner, CudaGraphs, captured
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.distributed import World
from trade_agent.training.learner import Learner
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

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        with Tape() as tape:
            result = work()
        return tape.repeat, result


class Broken(Tapes):
    """Recordings that leave out the step of the optimizer."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        with Tape() as tape:
            result = work()
        tape.operators = [entry for entry in tape.operators if "_fused_adam" not in str(entry[0])]
        return tape.repeat, result


class Impossible(Tapes):
    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


class StopAt(StopFlag):
    """Asks for the end at the n-th boundary."""

    def __init__(self, boundaries: int) -> None:
        super().__init__("")
        self.left = boundaries

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.signal = signal.SIGTERM
        return self.left == 0


class Wrap:
    """Puts a `CapturedLearner` in the place of a learner, and keeps it."""

    def __init__(self, graphs: Any) -> None:
        self.graphs = graphs

    def __call__(self, learner: Learner) -> CapturedLearner:
        self.captured = CapturedLearner(learner, self.graphs)
        return self.captured


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
    return [*loop.learner.changed(), torch.tensor(getattr(loop.learner.agent, "updates", 0)), torch.get_rng_state()]


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for value, seen in zip(one, other, strict=True):
        assert torch.equal(value, seen)


@pytest.fixture(autouse=True)
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are encoded as on a GPU: how many of a minibatch are distinct is no constant."""
    monkeypatch.setattr(encoders, "_distinct", lambda t: (t, None, torch.ones_like(t)))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "settings", "kinds"),
    [
        ("ppo", {"normalise_observation": True}, 1),
        ("ppo", {"policy": "beta", "entropy_coefficient": 0.01}, 1),
        ("ppo", {"policy": "categorical", "actions": [-1.0, 0.0, 1.0]}, 1),
        ("sac", {"normalise_reward": True}, 1),
        ("td3", {"normalise_observation": True}, 2),
        ("td3", {"policy_delay": 1, "layer_norm": True}, 1),
    ],
)
def test_replayed_updates_are_the_updates(algorithm: str, settings: dict[str, Any], kinds: int, joint: bool) -> None:
    wrap = Wrap(Tapes())
    replayed = trained(algorithm, joint=joint, settings=settings, wrap=wrap)
    assert wrap.captured.reason == ""
    assert len(wrap.captured.recorded) == kinds * (1 + joint)  # frozen forecaster, and not
    assert_same_bits(trained(algorithm, joint=joint, settings=settings), replayed)


def test_each_size_of_a_minibatch_is_recorded_by_itself() -> None:
    wrap = Wrap(Tapes())
    loop = prepared("ppo", wrap=wrap)
    loop.run()
    learner, before = wrap.captured, len(wrap.captured.recorded)
    batch = next(iter(learner.recorded.values())).inputs
    for _ in range(3):
        metrics = learner(batch[:50])
    assert len(learner.recorded) == before + 1
    assert set(metrics) == {"loss_actor", "loss_critic", "entropy", "approx_kl", "clip_fraction", "grad_norm"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("graphs", "why"), [(Broken(), "does not come to"), (Impossible(), "not permitted")])
def test_what_cannot_be_replayed_is_done_as_it_is(
    algorithm: str, graphs: Tapes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrap = Wrap(graphs)
    seen = trained(algorithm, wrap=wrap)
    assert why in wrap.captured.reason
    assert [why in line for line in caplog.messages] == [True]
    assert_same_bits(trained(algorithm), seen)


@pytest.mark.parametrize(("algorithm", "boundaries"), [("ppo", 2), ("sac", 3), ("td3", 3)])
def test_a_run_that_is_stopped_and_goes_on_ends_alike(algorithm: str, boundaries: int, tmp_path: Path) -> None:
    stops = 0
    while True:
        checkpoints = Checkpoints(tmp_path, every_seconds=math.inf, stop=StopAt(boundaries))
        try:
            seen = trained(algorithm, updates=24, wrap=Wrap(Tapes()), checkpoints=checkpoints)
            break
        except StoppedError:
            stops += 1
    assert stops > 0
    assert_same_bits(trained(algorithm, updates=24), seen)


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


def test_where_there_are_no_graphs_updates_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    learner = prepared("sac").learner
    assert captured(learner, device=CPU, world=World()) is learner
    assert captured(learner, device=torch.device("cuda"), world=World(0, 2)) is learner
    assert [line.startswith("device.capture: only one process on a GPU") for line in caplog.messages] == [True, True]


def with_tapes(monkeypatch: pytest.MonkeyPatch) -> list[CapturedLearner]:
    """The learners that are captured from here on."""
    made: list[CapturedLearner] = []

    def capture(learner: Learner, *, device: torch.device, world: World) -> CapturedLearner:
        assert (device, world.size) == (CPU, 1)
        made.append(CapturedLearner(learner, Tapes()))
        return made[-1]

    monkeypatch.setattr(agent_loop_module, "captured", capture)
    return made


@pytest.mark.parametrize("chosen", [True, False])
def test_the_option_reaches_a_stage(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    made = with_tapes(monkeypatch)
    run(tmp_path, "stage=rl", "model=sac", f"device.capture={str(chosen).lower()}")
    assert [len(learner.recorded) for learner in made] == [1] * chosen


def test_the_option_reaches_a_gymnasium_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_tapes(monkeypatch)
    options = ("stage=rl", "env=gymnasium", "model=sac", "device=cpu", "device.capture=true", "monitoring=off")
    sizes = ("trainer.off_policy_env_steps=240", "trainer.validation_checks=1", "model.num_envs=2")
    episodes = ("env.evaluation_episodes=1", "env.check_episodes=1", f"paths.outputs={tmp_path}")
    config = load_config(compose_config([*options, *sizes, *episodes]))
    UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True).run()
    assert [len(learner.recorded) for learner in made] == [1]


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cuda_graphs_are_the_updates(algorithm: str) -> None:
    wrap = Wrap(CudaGraphs())
    plain = agent_loop(algorithm, joint=False, updates=104, device=torch.device("cuda"))
    graphs = agent_loop(algorithm, joint=False, updates=104, device=torch.device("cuda"), wrap=wrap)
    states = []
    for loop in (plain, graphs):
        torch.manual_seed(3)
        loop.run()
        states.append([*loop.learner.changed(), torch.cuda.get_rng_state()])
    assert wrap.captured.reason == ""
    assert wrap.captured.recorded
    for expected, seen in zip(*states, strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_joint_update_can_be_captured(algorithm: str) -> None:
    wrap = Wrap(CudaGraphs())
    agent_loop(algorithm, joint=True, updates=24, device=torch.device("cuda"), wrap=wrap).run()
    assert wrap.captured.reason == ""
    assert wrap.captured.recorded


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_captured_run_goes_on_after_a_stop(algorithm: str, tmp_path: Path) -> None:
    def loop(stop: StopFlag, folder: Path | None) -> AgentLoop:
        checkpoints = Checkpoints(folder, every_seconds=math.inf, stop=stop)
        wrap = Wrap(CudaGraphs())
        cuda = torch.device("cuda")
        return agent_loop(algorithm, joint=False, updates=24, device=cuda, wrap=wrap, checkpoints=checkpoints)

    whole = loop(StopFlag(""), None)
    whole.run()
    with pytest.raises(StoppedError):
        loop(StopAt(2), tmp_path).run()
    rest = loop(StopFlag(""), tmp_path)
    rest.run()
    for expected, seen in zip(whole.learner.changed(), rest.learner.changed(), strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
