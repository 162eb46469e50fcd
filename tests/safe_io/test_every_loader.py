"""Every hostile file through every public loader of the project, laid where that loader looks: no canary, no object."""

import dataclasses
import functools
import json
import os

import pytest
import torch

from tests.registry.conftest import draft
from tests.safe_io.corpus import CONFIG, PKL, PTH
from trade_agent import safe_io
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import TradeAgentError, UnsafeFileError
from trade_agent.preprocessing.cache import FeatureCache
from trade_agent.registry.quarantine import import_model
from trade_agent.registry.scan import scan
from trade_agent.registry.verify import is_clean, verify
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.model_registry import ModelRegistry
from trade_agent.training.preprocessor_manager import PreprocessorManager, PreprocessorMetadata
from trade_agent.training.resume import continued, stored_config, write_run
from trade_agent.training.signals import StopFlag

SUFFIX = {PTH: ".pth", PKL: ".pkl", CONFIG: ".json"}
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def replace(path, data):
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@pytest.fixture(params=["as it is", pytest.param("weakened", marks=pytest.mark.slow)])
def surroundings(request, monkeypatch):
    """Also where the environment and another library switched torch's own protection off."""
    if request.param == "as it is":
        yield
        return
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with torch.serialization.safe_globals([(os.system, "posix.system"), eval, open, getattr, torch.nn.Linear]):
        yield


@pytest.fixture
def model(tmp_path):
    """A registry with one model, and a function that puts a file in its place, all digests changed with it."""
    registry = ModelRegistry(tmp_path / "models", durability="relaxed")
    metadata = registry.register(**draft())
    names = {PTH: f"{metadata.model_id}.pth", PKL: "preprocessor_v1.0.0.pkl", CONFIG: "config_v1.0.0.json"}
    folder = registry.root / "sac"
    kept = {name: (folder / name).read_bytes() for name in [*names.values(), "metadata_v1.0.0.json"]}

    def put(case):
        for name, data in kept.items():
            replace(folder / name, data)
        replace(folder / names[case.door], case.data)
        fields = json.loads(kept["metadata_v1.0.0.json"])
        del fields["checksum"]
        fields["files"][names[case.door]] = {"sha256": safe_io.sha256_bytes(case.data), "size": len(case.data)}
        replace(folder / "metadata_v1.0.0.json", safe_io.checked_json(fields))
        registry.layout.snapshot.unlink(missing_ok=True)
        return ModelRegistry(registry.root)

    return put


@pytest.mark.slow
@pytest.mark.usefixtures("surroundings")
def test_load_and_a_deep_verify_of_a_registry(hostile, model):
    for case in hostile:
        registry = model(case)
        with pytest.raises(TradeAgentError):
            registry.load("sac@1")
        assert not is_clean(verify(registry.root, deep=True)), case.name


@pytest.mark.usefixtures("surroundings")
def test_scan_and_import(hostile, tmp_path):
    registry = ModelRegistry(tmp_path / "models", durability="relaxed")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "good.pth").write_bytes(safe_io.dump_tensors({"w": torch.ones(1)}))
    for case in hostile:
        path = tmp_path / f"case{SUFFIX[case.door]}"
        path.write_bytes(case.data)
        assert [verdict.safe for verdict in scan(path)] == [False], case.name
        files = {"path": tmp_path / "good.pth", "config": tmp_path / "config.json"}
        files[{PTH: "path", PKL: "preprocessor", CONFIG: "config"}[case.door]] = path
        with pytest.raises(TradeAgentError):
            import_model(registry, model_type="ppo", **files)
    assert registry.list() == ()


@pytest.mark.usefixtures("surroundings")
def test_the_store_of_pipelines_and_its_cache(hostile, tmp_path):
    manager = PreprocessorManager(tmp_path)
    fields = dict.fromkeys(PreprocessorMetadata.__slots__, "a" * 64) | {"version": "v1.0.0", "warmup_bars": 0}
    fields |= {"feature_names": [], "rows": [0, 1], "steps": []}
    for case in hostile:
        digest = safe_io.sha256_bytes(case.data)
        replace(tmp_path / "preprocessor_v1.0.0.pkl", case.data)
        replace(tmp_path / "metadata_v1.0.0.json", safe_io.checked_json(fields | {"sha256": digest}))
        with pytest.raises(TradeAgentError):
            manager.load("v1.0.0")
        cache = FeatureCache(tmp_path / "cache")
        cache.folder.mkdir(exist_ok=True)
        (cache.folder / "key.pkl").write_bytes(case.data + bytes.fromhex(digest))
        assert cache.load_state("key") is None


@pytest.mark.usefixtures("surroundings")
def test_checkpoints_and_the_config_of_a_run_that_goes_on(hostile, tmp_path):
    config = load_config(compose_config(["stage=cnn_lstm"]))
    config = dataclasses.replace(config, command="python train.py data.path='${oc.env:DATA}'")  # kept as it was typed
    write_run(tmp_path, config, about={})
    assert stored_config(tmp_path).command == config.command
    assert stored_config(tmp_path).run_id == config.run_id
    values = safe_io.read_json(tmp_path / "config.json")
    for change in ({"notes": "${oc.env:HOME}"}, {"data": values["data"] | {"_target_": "os.system"}}):
        safe_io.write_json(tmp_path / "config.json", values | change)
        for read in (stored_config, functools.partial(continued, config)):
            with pytest.raises(UnsafeFileError, match=r"oc\.env|_target_"):
                read(tmp_path)
    for case in hostile:
        folder = tmp_path / "checkpoints"
        folder.mkdir(exist_ok=True)
        path = folder / f"sac-000001-{safe_io.sha256_bytes(case.data)[:16]}.pth"
        path.write_bytes(case.data)
        session = Checkpoints(folder, every_seconds=0.0, stop=StopFlag("")).session("sac", torch.Generator())
        assert not session.restore(), case.name
        path.unlink()
        (tmp_path / "config.json").write_bytes(case.data)
        for read in (stored_config, functools.partial(continued, config)):
            with pytest.raises(TradeAgentError):
                read(tmp_path)
