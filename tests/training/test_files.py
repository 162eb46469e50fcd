"""Every file that training writes is data: the gate reads it, and torch's own loader with no name allowed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trade_agent import safe_io
from trade_agent.config.load import compose_config, load_config
from trade_agent.registry.verify import verify
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.unified_manager import UnifiedTrainingManager

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["cnn_lstm", "ppo", "sac", "td3", "hybrid_ppo", "hybrid_sac", "hybrid_td3", "ensemble"]
TASKS = ["ppo", "sac", "td3"]
READ_BY_PEOPLE = {".png", ".jsonl", ".f4", ".md"}  # and what TensorBoard reads; no file of these becomes an object
TASK = (
    "stage=rl", "env=gymnasium", "env.evaluation_episodes=1", "env.check_episodes=1", "trainer.validation_checks=1",
    "trainer.on_policy_env_steps=64", "trainer.off_policy_env_steps=64", "model.hidden_sizes=[8]", "model.num_envs=2",
    "trainer.checkpoint_seconds=0", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every stage and of every algorithm on a gymnasium task; their checkpoints stay."""
    root = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "remove", lambda self: None)
        config = load(root, "stage=ensemble", "model.combiner=gate", "trainer.checkpoint_seconds=0")
        UnifiedTrainingManager(config, run_dir=root / "run", quiet=True).run()
        for model in TASKS:
            config = load_config(compose_config([*TASK, f"model={model}", f"paths.models={root}/models"]))
            UnifiedTrainingManager(config, run_dir=root / model, quiet=True).run()
    return root


def files(root: Path, suffix: str) -> list[Path]:
    return sorted(path for path in root.rglob(f"*{suffix}") if path.is_file())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_checkpoints_and_a_model(written: Path, stage: str) -> None:
    """So none of them is missing among the files that are read below."""
    checkpoints = files(written / "run/checkpoints" / stage, ".pth")
    states = [safe_io.load_tensors(path.read_bytes(), name=path.name) for path in checkpoints]
    assert states
    assert all({"rng", "finished"} < state.keys() for state in states)
    folder = stage.split("_")[0] if stage.startswith("hybrid") else stage
    assert files(written / "models" / folder, ".pth")


@pytest.mark.parametrize("model", TASKS)
def test_a_task_leaves_checkpoints_and_an_agent(written: Path, model: str) -> None:
    assert files(written / model / "checkpoints", ".pth")
    assert safe_io.load_tensors((written / model / "agent.pth").read_bytes(), name="agent.pth")["kind"] == model


def test_the_gate_reads_every_file(written: Path) -> None:
    unread = []
    for path in sorted(each for each in written.rglob("*") if each.is_file()):
        if path.suffix == ".pth":
            assert safe_io.load_tensors(path.read_bytes(), name=path.name)
        elif path.suffix == ".pkl":
            assert safe_io.load_arrays(path.read_bytes(), name=path.name)
        elif path.name.startswith("metadata_v") or path.parent.name == ".claims":
            assert safe_io.read_checked_json(path)
        elif path.suffix == ".json":
            assert safe_io.read_json(path) is not None
        elif path.name == "lock":
            assert path.read_bytes() == b""
        elif path.suffix not in READ_BY_PEOPLE and path.parent.name != "tensorboard":
            unread.append(path)
    assert unread == []
    assert verify(written / "models", deep=True) == []


def test_torch_reads_every_checkpoint_with_no_name_allowed(written: Path) -> None:
    """In a process of its own: libraries that training imports allow names of theirs, and torch does too."""
    code = (
        "import sys, torch\n"
        "torch.serialization.clear_safe_globals()\n"
        "assert torch.serialization.get_safe_globals() == []\n"
        "print(sum(type(torch.load(path, weights_only=True)) is dict for path in sys.argv[1:]))"
    )
    paths = [str(path) for path in files(written, ".pth")]
    environment = {key: value for key, value in os.environ.items() if key != "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"}
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.stderr) == (f"{len(paths)}\n", "")
    assert len(paths) >= 2 * len(STAGES) + 3 * len(TASKS)


def test_metadata_stays_small(written: Path) -> None:
    sizes = {path: path.stat().st_size for path in files(written / "models", ".json") if "metadata_v" in path.name}
    assert len(sizes) == len(STAGES) + 1  # and that of the stored pipeline
    assert max(sizes.values()) < 64 * 1024
