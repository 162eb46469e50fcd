"""Work that was cut off and goes on ends with the bits of work that was not."""

import errno
import fcntl
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trade_agent import safe_io
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import CheckpointError, ConfigError, StoppedError, TrainingDivergedError
from trade_agent.registry.store import ModelRegistry
from trade_agent.training import reinforcement
from trade_agent.training.checkpoint import Checkpoints, Session, no_checkpoints
from trade_agent.training.distributed import World
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.resume import locked, stored_config
from trade_agent.training.runs import resume_run, run_config
from trade_agent.training.signals import EXIT_CODES, StopFlag, stop_on_signals
from trade_agent.training.stages import cnn_lstm, ensemble, hybrid, rl
from trade_agent.training.stages.context import StageContext, StageOutcome
from trade_agent.training.unified_manager import UnifiedTrainingManager

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[StageContext], StageOutcome]


class StopAt(StopFlag):
    """Asks for the end at the n-th boundary."""

    def __init__(self, boundaries: int) -> None:
        super().__init__("python train.py resume=HERE")
        self.left = boundaries

    @property
    def number(self) -> int:
        self.left -= 1
        return int(signal.SIGTERM) if self.left == 0 else 0


class Checks(Watch):
    """Remembers the validation checks of a run."""

    prunes = True  # so that every stage makes them

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Mapping[str, float]]] = []

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append((step, metrics))


def finish_in_pieces(run: Run, context: StageContext, folder: Path, boundaries: int) -> tuple[StageOutcome, int]:
    """Stop at every n-th boundary and go on, as new processes would; the outcome and the number of stops."""
    stops = 0
    while True:
        torch.manual_seed(stops)  # what a new process starts with must not matter
        checkpoints = Checkpoints(folder, every_seconds=math.inf, stop=StopAt(boundaries))
        try:
            return run(replace(context, checkpoints=checkpoints)), stops
        except StoppedError:
            stops += 1


def assert_equal(one: StageOutcome, other: StageOutcome) -> None:
    assert safe_io.weights_sha256(one.state) == safe_io.weights_sha256(other.state)
    assert one.history == other.history
    assert one.metrics == other.metrics
    assert one.objective == other.objective
    assert one.env_steps == other.env_steps


def forecaster_stage(trained: Any, *overrides: str) -> tuple[Run, Any]:
    config = trained.settings("stage=cnn_lstm", *overrides)
    return lambda context: cnn_lstm.run(context, stage=config.stage, model=config.model), config


def agent_stage(trained: Any, algorithm: str, *overrides: str) -> tuple[Run, Any]:
    config = trained.settings("stage=rl", f"model={algorithm}", *overrides)
    parent = trained.parent("forecaster", "cnn_lstm")
    return lambda context: rl.run(context, model=config.model, forecaster=parent), config


def hybrid_stage(trained: Any, algorithm: str, *overrides: str) -> tuple[Run, Any]:
    config = trained.settings("stage=hybrid", f"model={algorithm}", *overrides)
    named = {
        "stage": config.stage,
        "forecaster_stage": config.upstream.cnn_lstm.stage,
        "model": config.model,
        "forecaster": trained.parent("forecaster", "cnn_lstm"),
        "agent": trained.parent("agent", algorithm),
    }
    return lambda context: hybrid.run(context, **named), config


def gate_stage(trained: Any) -> tuple[Run, Any]:
    config = trained.settings("stage=ensemble", "model.combiner=gate", "trainer.gate_epochs=7")
    members = [trained.parent("member", "hybrid", algorithm) for algorithm in ("ppo", "sac", "td3")]
    return lambda context: ensemble.run(context, model=config.model, members=members), config


OFF_POLICY = ("trainer.off_policy_env_steps=400", "trainer.validation_checks=2", "model.hidden_sizes=[8]")
ON_POLICY = ("trainer.on_policy_env_steps=1500", "trainer.validation_checks=2", "model.rollout_steps=16")
JOINT = ("trainer.joint_on_policy_env_steps=500", "model.rollout_steps=8")
OPTIONS = ("model.n_step=3", "model.normalise_observation=true", "model.normalise_reward=true")
STAGES = {
    "forecaster": (lambda trained: forecaster_stage(trained, "trainer.cross_fit_folds=2"), 3),
    "ppo": (lambda trained: agent_stage(trained, "ppo", *ON_POLICY, *OPTIONS[1:]), 2),
    "sac": (lambda trained: agent_stage(trained, "sac", *OFF_POLICY), 6),
    "td3 with every option": (
        lambda trained: agent_stage(trained, "td3", *OFF_POLICY, *OPTIONS, "model.learning_rate_schedule=linear"),
        9,
    ),
    "hybrid ppo": (lambda trained: hybrid_stage(trained, "ppo", *JOINT), 1),
    "hybrid td3": (lambda trained: hybrid_stage(trained, "td3", "trainer.joint_off_policy_env_steps=300"), 4),
    "gate": (gate_stage, 2),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_is_stopped_again_and_again_ends_alike(trained: Any, tmp_path: Path, name: str) -> None:
    make, boundaries = STAGES[name]
    run, config = make(trained)
    context = trained.context(tmp_path, config)
    watch, watch_of_pieces = Checks(), Checks()
    whole = run(replace(context, watch=watch))
    pieces, stops = finish_in_pieces(run, replace(context, watch=watch_of_pieces), tmp_path / "checkpoints", boundaries)
    assert stops > 1
    assert_equal(pieces, whole)
    assert watch_of_pieces.seen == watch.seen  # no check is made twice


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = agent_stage(trained, "sac", *OFF_POLICY)
    context = trained.context(tmp_path, config)
    whole = run(context)
    folder = tmp_path / "checkpoints"
    for boundaries in (20, 3):
        checkpoints = Checkpoints(folder, every_seconds=math.inf, stop=StopAt(boundaries))
        with pytest.raises(StoppedError):
            run(replace(context, checkpoints=checkpoints))
    older, newer = sorted(folder.glob("*.pth"))
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    (folder / "sac-000009-0123456789abcdef.pth").write_bytes(older.read_bytes()[:1000])  # cut short
    outcome = run(replace(context, checkpoints=Checkpoints(folder, every_seconds=math.inf, stop=StopFlag(""))))
    assert_equal(outcome, whole)
    assert f"{newer} is damaged, the one before is taken" in caplog.text


def counted(folder: Path) -> tuple[Session, dict[str, int]]:
    """A session whose state is one number."""
    checkpoints = Checkpoints(folder, every_seconds=0.0, stop=StopFlag(""))
    session, state = checkpoints.session("loop", torch.Generator()), {"count": 0}
    session.keep("state", lambda: dict(state), state.update)
    return session, state


def test_a_checkpoint_that_cannot_be_read_is_passed_over_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket, of which the system reads nothing, stands where the newest was: no permission stops the superuser."""
    session, state = counted(tmp_path)
    for count in (1, 2):
        state["count"] = count
        session.write()
    newest = sorted(tmp_path.glob("*.pth"))[-1]
    newest.unlink()
    (tmp_path / "stage.json").unlink()
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(newest.name)
        other.bind("stage.json")
        again, found = counted(tmp_path)
        assert again.restore()
    assert found == {"count": 1}
    assert "stage.json is passed over" in caplog.text
    assert f"the checkpoint before is taken: cannot read {newest}" in caplog.text


def test_of_the_checkpoints_that_are_kept_only_the_newest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session, state = counted(tmp_path)
    for count in (1, 2):
        state["count"] = count
        session.write()
    older, _ = sorted(tmp_path.glob("*.pth"))
    older.write_bytes(b"damaged")
    again, found = counted(tmp_path)
    assert again.restore()
    assert found == {"count": 2}
    assert caplog.messages == []


def test_two_checkpoints_of_a_piece_are_kept_and_none_of_a_state_that_is_not_finite(tmp_path: Path) -> None:
    generator = torch.Generator()
    session = Checkpoints(tmp_path / "c", every_seconds=0.0, stop=StopFlag("")).session("The Loop", generator)
    state = {"value": torch.zeros(3)}
    session.keep("state", lambda: state, state.update)
    for count in range(4):
        state["value"] += 1
        session.boundary()
        assert len(list((tmp_path / "c").glob("*.pth"))) == min(count + 1, 2)
    state["value"][1] = math.nan
    with pytest.raises(TrainingDivergedError, match="not finite"):
        session.boundary()
    assert session.restore()
    assert state["value"].tolist() == [4.0, 4.0, 4.0]
    other = Checkpoints(tmp_path / "c", every_seconds=0.0, stop=StopFlag("")).session("The Loop", generator)
    with pytest.raises(CheckpointError, match="belongs to other work"):
        other.restore()
    assert not no_checkpoints().session("The Loop", generator).restore()


def test_a_checkpoint_that_not_all_processes_have_written_pushes_out_none_that_they_have(tmp_path: Path) -> None:
    """The other process was killed twice before it wrote its second checkpoint: the first one is what both have."""

    class FirstOfTwo(World):
        def gathered(self, value: Any) -> list[Any]:
            return [value, [1] if isinstance(value, list) else 1]

        def any(self, *flags: bool) -> list[bool]:
            return list(flags)

        def agreed(self, value: Any) -> Any:
            return value

    generator, count = torch.Generator(), {"count": 0}

    def session() -> Session:
        checkpoints = Checkpoints(
            tmp_path / "c", every_seconds=0.0, stop=StopFlag(""), world=FirstOfTwo(rank=0, size=2)
        )
        session = checkpoints.session("loop", generator)
        session.keep("state", lambda: dict(count), count.update)
        return session

    first = session()
    for number in (1, 2):
        count["count"] = number
        first.write()
    for _ in range(3):
        again = session()
        assert again.restore()
        assert count == {"count": 1}
        count["count"] = 2
        again.write()


def test_a_checkpoint_of_another_device_is_passed_over_and_no_newer_one_removed_for_it(tmp_path: Path) -> None:
    def session(generator: torch.Generator) -> Session:
        checkpoints = Checkpoints(tmp_path / "c", every_seconds=0.0, stop=StopFlag(""))
        return checkpoints.session("loop", generator)

    class OnGpu(torch.Generator):
        device = torch.device("cuda")

    other = session(OnGpu())
    for _ in range(3):
        other.write()
    own = session(torch.Generator())
    assert not own.restore()
    own.write()
    assert session(torch.Generator()).restore()
    assert [path.name[:11] for path in sorted((tmp_path / "c").glob("*.pth"))] == ["loop-000003", "loop-000004"]


def test_what_a_stage_took_counts_the_processes_before(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path / "c", every_seconds=0.0, stop=StopFlag(""))
    first._started -= 100.0  # it began so long ago
    first.session("loop", torch.Generator()).write()
    assert 100.0 <= Checkpoints(tmp_path / "c", every_seconds=0.0, stop=StopFlag("")).seconds < 1000.0


# ------------------------------------------------------------------------------------------------ divergence


def test_a_training_that_diverges_goes_back_with_half_the_rate_and_ends(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics become NaN twice, in the middle of the training."""
    config = load(tmp_path, trained, "stage=rl", "model=sac", "trainer.off_policy_env_steps=2000")
    real, calls, rates = reinforcement.finite, [], []

    def finite(metrics: dict[str, float], env_steps: int) -> None:
        calls.append(env_steps)
        real(metrics | {"loss_critic": math.nan} if len(calls) in (3, 6) else metrics, env_steps)

    original = reinforcement.LearningRates.set

    def seen(self: Any, done: float) -> None:
        original(self, done)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(reinforcement, "finite", finite)
    monkeypatch.setattr(reinforcement.LearningRates, "set", seen)
    manager = UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True)
    manager.run()
    base = config.model.learning_rate
    assert list(dict.fromkeys(rates)) == [base, base / 2, base / 4]
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_training_that_diverges_too_often_is_an_error_with_the_command_to_go_on(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(tmp_path, trained, "stage=rl", "model=sac", "trainer.divergence_retries=1")

    def diverged(*arguments: Any) -> None:
        raise TrainingDivergedError("loss_critic is nan", "lower model.learning_rate")

    monkeypatch.setattr(reinforcement, "finite", diverged)
    with pytest.raises(TrainingDivergedError):
        UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True).run()
    error = json.loads((tmp_path / "run/error.json").read_text())
    assert error["resume"] == f"python train.py resume={tmp_path / 'run'}"
    assert error["message"] == "loss_critic is nan"


# ------------------------------------------------------------------------------------------------ runs


def load(folder: Path, trained: Any, *overrides: str) -> Any:
    """A config on a copy of the registry of `trained`, whose parents are found there."""
    config = trained.settings(*overrides)
    shutil.copytree(trained.root / "models", folder / "models")
    config.paths.models, config.paths.outputs = str(folder / "models"), str(folder / "outputs")
    return config


def test_a_run_goes_on_under_its_own_identity_and_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    config = load_config(
        compose_config(
            ["stage=cnn_lstm", "trainer=smoke", f"paths.models={tmp_path / 'models'}", f"paths.outputs={tmp_path}"]
        ),
        "python train.py stage=cnn_lstm trainer=smoke",
    )
    with monkeypatch.context() as patch:
        patch.setattr("trade_agent.training.unified_manager.StopFlag", lambda resume: StopAt(5))
        first = UnifiedTrainingManager(config, run_dir=folder, quiet=True)
        with pytest.raises(StoppedError, match="stopped by SIGTERM; go on with: python train.py resume=HERE"):
            first.run()
    assert list((folder / "checkpoints/cnn_lstm").glob("*.pth"))
    assert not (folder / "error.json").exists()
    assert stored_config(folder).run_id == first.config.run_id

    result = UnifiedTrainingManager(stored_config(folder), run_dir=folder, quiet=True).run()
    assert result.run_id == first.config.run_id
    assert result.command == "python train.py stage=cnn_lstm trainer=smoke"
    assert not (folder / "checkpoints").exists()
    (folder / "checkpoints").mkdir()  # as if the process had been killed right after its result was written
    assert resume_run(folder) == result
    assert run_config(first.config, run_dir=folder) == result
    assert capsys.readouterr().err.count(f"the run in {folder} is finished: nothing is left to do\n") == 2
    assert [record.id for record in ModelRegistry(tmp_path / "models").list()] == [result.model_id]
    assert not (folder / "checkpoints").exists()
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        resume_run(tmp_path / "elsewhere")


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    held = (
        "import sys, pathlib; from trade_agent.training.resume import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is at work"), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        pass


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be locked: No locks available"), locked(tmp_path):
        pass


def test_signals_are_noticed_and_the_handlers_before_them_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)):
        flag = StopFlag("python train.py resume=X")
        with stop_on_signals(flag):
            assert not flag.requested
            signal.raise_signal(number)
            assert flag.requested
            with pytest.raises(StoppedError) as stopped:
                flag.raise_stopped()
            assert stopped.value.exit_code == code
            if number == signal.SIGTERM:  # batch systems send it twice, and once is meant
                signal.raise_signal(number)
                assert flag.signal == number
            with pytest.raises(StoppedError):  # a second Ctrl-C does not wait for a boundary
                signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


RUN_AND_DIE = """
import os, sys
from pathlib import Path
from trade_agent.config.load import compose_config, load_config
from trade_agent.console import exit_code_of
from trade_agent.training.checkpoint import Session
from trade_agent.training.unified_manager import UnifiedTrainingManager

number, left, folder, *overrides = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]
real = Session.boundary

def boundary(self, **named):
    global left
    left -= self.piece == "td3"
    if left == 0:
        left = -1
        os.kill(os.getpid(), number)
    real(self, **named)

Session.boundary = boundary
sys.exit(exit_code_of(UnifiedTrainingManager(load_config(compose_config(overrides)), run_dir=folder).run))
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def what_was_learned(folder: Path) -> tuple[str, Any, Any]:
    result = json.loads((folder / "run/result.json").read_text())
    metadata = json.loads((folder / "models/td3/metadata_v1.0.0.json").read_text())
    return metadata["weights_sha256"], result["metrics"], result["objective"]


@pytest.mark.slow
def test_real_processes_that_are_killed_or_told_to_stop_go_on_to_the_same_weights(tmp_path: Path) -> None:
    options = ("stage=rl", "model=td3", "trainer=smoke", "device=cpu")
    whole = python(str(ROOT / "train.py"), *options, "hydra.run.dir=run", cwd=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for number, code in (*EXIT_CODES.items(), (signal.SIGKILL, -9)):
        folder = tmp_path / number.name
        often = (*options, "trainer.checkpoint_seconds=0")
        killed = python("-c", RUN_AND_DIE, str(int(number)), "40", "run", *often, cwd=folder)
        assert killed.returncode == code, killed.stderr
        said = f"stopped by {number.name}; go on with: python train.py resume={folder / 'run'}\n"
        assert killed.stderr.endswith(said) == (number != signal.SIGKILL)
        assert len(list((folder / "run/checkpoints/td3").glob("td3-*.pth"))) == 2
        done = python(str(ROOT / "train.py"), "resume=run", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("model_id: td3_v1.0.0_grade_")
        assert what_was_learned(folder) == what_was_learned(tmp_path / "whole")
        assert not (folder / "run/checkpoints").exists()
