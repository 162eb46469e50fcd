"""A disk that has no hard links: names are taken by exclusive renaming or creation, with the same outcome."""

import errno
import itertools
import os
import signal

import numpy as np
import pytest

from trade_agent.data.bars import Bars
from trade_agent.errors import RegistryError
from trade_agent.preprocessing.specs import StepSpec
from trade_agent.registry import layout as layout_module
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify
from trade_agent.training.preprocessor_manager import PreprocessorManager


@pytest.fixture(autouse=True, params=["rename", "create"])
def no_links(monkeypatch, request):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if request.param == "create":
        monkeypatch.setattr(layout_module, "rename_new", no_exclusive_rename)
    return request.param


def no_exclusive_rename(source, target):
    raise OSError(errno.EINVAL, "Invalid argument")


def register_many(root, make_draft, seeds):
    registry = ModelRegistry(root, durability="relaxed")
    for seed in seeds:
        yield registry.register(**make_draft(seed=seed)).model_id


def test_a_model_goes_through_its_whole_life(registry, make_draft):
    first = registry.register(**make_draft(seed=1)).model_id
    second = registry.register(**make_draft(seed=2, parents=[registry.pin(first, role="agent")])).model_id
    assert registry.register(**make_draft(seed=1)).model_id == first
    registry.set_alias(first, "champion")
    assert registry.load("sac@champion").metadata.seed == 1
    registry.archive([second])
    registry.restore([second])
    registry.archive([second])
    registry.purge([second], purge_after_days=0)
    assert [record.id for record in registry.list()] == [first]
    assert verify(registry.root) == []


def test_a_pipeline_is_stored_and_found(tmp_path):
    close = np.linspace(100.0, 110.0, 50)[:, None]
    bars = Bars(
        timestamps=np.datetime64("2020-01-01", "ns") + np.arange(50) * np.timedelta64(1, "D"),
        symbols=("X",), tradable=np.ones((50, 1), dtype=bool), calendar="24/7", bar_seconds=86_400,
        **dict.fromkeys(("open", "high", "low", "close", "volume"), close),
    )  # fmt: skip
    manager = PreprocessorManager(tmp_path / "preprocessors")
    for stop in (40, 41):
        pipeline = manager.create(steps=[StepSpec("log_return", {"lags": [1]})]).fit(bars, range(stop))
        manager.save(pipeline, data_fingerprint="data", rows=range(stop))
        assert manager.load(pipeline.version).content_hash == pipeline.content_hash
    assert sorted(path.name for path in manager.root.iterdir()) == [
        "metadata_v1.0.0.json", "metadata_v1.1.0.json", "preprocessor_v1.0.0.pkl", "preprocessor_v1.1.0.pkl"
    ]  # fmt: skip


def test_two_writers_share_no_number(registry, make_draft, fork):
    seeds = [*range(10)], [*range(100, 110)]
    results = [writer.result() for writer in [fork(register_many, registry.root, make_draft, each) for each in seeds]]
    assert [status for _, status in results] == [0, 0]
    identifiers = [line for lines, _ in results for line in lines]
    assert len(set(identifiers)) == 20
    assert {record.id for record in registry.list()} == set(identifiers)
    assert verify(registry.root) == []


def test_a_number_that_was_given_up_stays_closed(registry, make_draft, monkeypatch):
    real = layout_module._copy_new

    def give_up_first(source, target):
        if target.name == "metadata_v1.0.0.json" and source.name == "metadata":
            registry.collect_garbage(older_than_hours=0)
        return real(source, target)

    monkeypatch.setattr(layout_module, "_copy_new", give_up_first)
    with pytest.raises(RegistryError, match="was fenced"):
        registry.register(**make_draft())
    assert registry.list() == ()


def killed_at(root, draft, number, *, before):
    """Register in a process that is killed before or after it gives a name for the time ``number``."""
    real, calls = layout_module.rename_new, []

    def rename(source, target):
        calls.append(target)
        if before and len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed = real(source, target)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    layout_module.rename_new = rename  # in the forked process only
    yield ModelRegistry(root, durability="relaxed").register(**draft).model_id


@pytest.mark.parametrize("before", [True, False])
def test_a_killed_process_leaves_no_empty_name(registry, make_draft, fork, no_links, before):
    registry.register(**make_draft(seed=1))
    try:
        (registry.root / "probe").touch()
        layout_module.rename_new(registry.root / "probe", registry.root / "probe")
    except OSError as error:
        pytest.skip(f"this disk has no exclusive rename: {error}")
    finally:
        (registry.root / "probe").unlink()
    for number in itertools.count(1):
        lines, status = fork(killed_at, registry.root, make_draft(seed=2), number, before=before).result()
        assert [path for path in registry.root.rglob("*") if path.is_file() and not path.stat().st_size] == []
        assert is_clean(verify(registry.root))
        if status == 0:
            break
        registry.repair()
    assert number > 6  # claims, data files, metadata
    registry.collect_garbage(older_than_hours=0)
    assert verify(registry.root) == []
    assert registry.register(**make_draft(seed=2)).model_id == lines[0]
    assert {record.id for record in registry.list()} >= {lines[0]}


@pytest.mark.parametrize("call", ["open", "replace"])
def test_a_failing_disk_leaves_no_empty_name(registry, make_draft, monkeypatch, call):
    monkeypatch.setattr(layout_module, "rename_new", no_exclusive_rename)
    registry.register(**make_draft(seed=1))
    real = getattr(os, call)

    def fail(*arguments, **named):
        if str(arguments[-2 if call == "open" else 1]).endswith("metadata_v1.0.1.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(RegistryError, match="No space left"):
            registry.register(**make_draft(seed=2))
    assert not (registry.root / "sac/metadata_v1.0.1.json").exists()
    assert len(registry.list()) == 1
    assert registry.register(**make_draft(seed=3)).version == "1.0.2"
