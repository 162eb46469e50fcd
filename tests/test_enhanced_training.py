"""Four checks of the installed project for real, under pytest or as `python tests/test_enhanced_training.py`."""

import os
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script from a checkout that is not installed

import torch  # noqa: E402

from trade_agent import safe_io  # noqa: E402
from trade_agent.config.load import compose_config, load_config  # noqa: E402
from trade_agent.data.bars import Bars  # noqa: E402
from trade_agent.data.load import load_bars  # noqa: E402
from trade_agent.errors import RegistryError  # noqa: E402
from trade_agent.registry.metadata import DataInfo, Objective, PreprocessorInfo  # noqa: E402
from trade_agent.training.model_registry import ModelRegistry, PerformanceGrade  # noqa: E402
from trade_agent.training.preprocessor_manager import PreprocessorManager  # noqa: E402
from trade_agent.training.unified_manager import UnifiedTrainingManager  # noqa: E402

FOLDERS = ("conf", "models", "outputs", "tests", "trade_agent")
PACKAGES = ("agents", "config", "data", "envs", "evaluation", "networks", "preprocessing", "registry", "training")
FILES = (
    "train.py",
    "pyproject.toml",
    "conf/train.yaml",
    "trade_agent/cli.py",
    "trade_agent/training/unified_manager.py",
    "trade_agent/training/model_registry.py",
    "trade_agent/training/preprocessor_manager.py",
)
STAGES = ("cnn_lstm", "rl", "hybrid", "ensemble")


def sample_bars() -> Bars:
    bars, _ = load_bars(
        source="sample", path=None, symbols=["AAPL"], start="2011-01-01", end=None, columns={}, time_format=None,
        timezone="UTC", symbol_column=None, delimiter=None, calendar=None, price_side="mid", adjust=True, policies={},
        interval=None, exchange=None,
    )  # fmt: skip
    return bars


def test_folder_structure() -> None:
    """The folders and files that the documentation and other programs rely on are there."""
    missing = [name for name in FOLDERS if not (ROOT / name).is_dir()]
    missing += [name for name in FILES if not (ROOT / name).is_file()]
    missing += [name for name in PACKAGES if not (ROOT / "trade_agent" / name / "__init__.py").is_file()]
    missing += [name for name in STAGES if not (ROOT / f"conf/stage/{name}.yaml").is_file()]
    missing += [name for name in STAGES if not (ROOT / f"trade_agent/training/stages/{name}.py").is_file()]
    assert not missing, f"missing: {', '.join(missing)}"


def test_model_registry() -> None:
    """Register a model, list it, load it verified, and notice a single altered byte."""
    with tempfile.TemporaryDirectory() as folder:
        registry = ModelRegistry(Path(folder))
        weight = torch.arange(6.0).view(2, 3)
        metadata = registry.register(
            model_type="cnn_lstm",
            state={"layer": {"weight": weight}},
            preprocessor=safe_io.dump_arrays({"mean": [0.0]}),
            config={"seed": 1},
            grade=PerformanceGrade.B,
            grade_decision={},
            metric_token=("acc", 0.61),
            objective=Objective(name="validation_skill_score", value=0.1, direction="max"),
            metrics={"directional_accuracy": 0.61},
            baselines={},
            parents=[],
            preprocessor_info=PreprocessorInfo(version="v1.0.0", content_hash="a" * 64, contract_hash="b" * 64),
            data=DataInfo(
                fingerprint="c" * 64,
                symbols=["AAPL"],
                source="sample",
                splits={
                    name: ["2011-01-03T00:00:00", "2011-02-01T00:00:00"] for name in ("train", "validation", "test")
                },
            ),
            contract={"window_bars": 8},
            recipe={"layers": 1},
            seed=1,
            run_id="enhanced",
            trainer_profile="smoke",
        )
        assert metadata.model_id == "cnn_lstm_v1.0.0_grade_B_acc_0.61"
        assert [record.id for record in registry.list()] == [metadata.model_id]
        for reference in (metadata.model_id, "cnn_lstm@latest"):
            assert torch.equal(registry.load(reference).state["layer"]["weight"], weight)
        stored = Path(folder) / "cnn_lstm" / f"{metadata.model_id}.pth"
        content = bytearray(stored.read_bytes())
        content[len(content) // 2] ^= 1
        os.chmod(stored, 0o644)
        stored.write_bytes(content)
        try:
            ModelRegistry(Path(folder)).load(metadata.model_id)
        except RegistryError:
            return
        raise AssertionError("an altered model was loaded")


def test_preprocessor_manager() -> None:
    """Create a pipeline, fit it on train rows, save it, load it: the same features come out."""
    bars = sample_bars()
    with tempfile.TemporaryDirectory() as folder:
        manager = PreprocessorManager(Path(folder) / "preprocessors")
        pipeline = manager.create(template="minimal").fit(bars, range(20, 300))
        stored = manager.save(pipeline, data_fingerprint=bars.fingerprint, rows=range(20, 300))
        assert stored.version == "v1.0.0"
        assert [found.version for found in manager.list()] == ["v1.0.0"]
        loaded = manager.load("v1.0.0")
        assert loaded.content_hash == pipeline.content_hash
        before, after = pipeline.transform(bars), loaded.transform(bars)
        assert before.names == after.names
        assert (before.values[20:] == after.values[20:]).all()


def test_training_manager() -> None:
    """Train the forecaster on the embedded sample and find it in the registry."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["stage=cnn_lstm", "trainer=smoke", "data.start=2009-01-01", "device=cpu",
                     f"paths.models={folder}/models", f"paths.outputs={folder}/outputs"]  # fmt: skip
        result = UnifiedTrainingManager(load_config(compose_config(overrides)), quiet=True).run()
        loaded = ModelRegistry(Path(folder) / "models").load(result.model_id)
        assert loaded.metadata.grade == result.grade
        assert loaded.state["kind"] == "cnn_lstm"
        run_folder = next((Path(folder) / "outputs/cnn_lstm").iterdir())
        for name in ("result.json", "config.json", "run.json", "history.json", "forecast.png"):
            assert (run_folder / name).stat().st_size > 0, name


CHECKS = {
    "folder structure": test_folder_structure,
    "model registry": test_model_registry,
    "preprocessor manager": test_preprocessor_manager,
    "training manager": test_training_manager,
}


def main() -> int:
    """Run the checks, print a line for each and the sum; 0 when all passed."""
    passed = 0
    for name, check in CHECKS.items():
        try:
            check()
        except Exception:
            traceback.print_exc()
            print(f"FAIL {name}")
        else:
            passed += 1
            print(f"ok   {name}")
    print(f"{passed}/{len(CHECKS)} tests passed")
    return 0 if passed == len(CHECKS) else 1


if __name__ == "__main__":
    sys.exit(main())
