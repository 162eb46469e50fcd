import errno
import multiprocessing
import os
import random
import shutil

import numpy as np
import pytest

from trade_agent import safe_io
from trade_agent.data.bars import Bars
from trade_agent.errors import PreprocessingError, RegistryError, UnsafeFileError
from trade_agent.preprocessing.pipeline import StepSpec
from trade_agent.registry.layout import Layout
from trade_agent.registry.naming import MODEL_TYPES
from trade_agent.registry.verify import is_clean, verify
from trade_agent.training import preprocessor_manager as module
from trade_agent.training.model_registry import ModelRegistry
from trade_agent.training.preprocessor_manager import PreprocessingPipeline, PreprocessorManager

STEPS = [StepSpec("log_return", {"lags": [1, 5]}), StepSpec("standard_scaler")]


def make_bars(num_bars=120, *, seed=0):
    close = 100.0 * np.exp(np.cumsum(0.01 * np.random.default_rng(seed).standard_normal((num_bars, 1)), axis=0))
    return Bars(
        timestamps=np.datetime64("2020-01-01", "ns") + np.arange(num_bars) * np.timedelta64(1, "D"),
        symbols=("X",),
        open=close.copy(),
        high=close.copy(),
        low=close.copy(),
        close=close,
        volume=np.ones_like(close),
        tradable=np.ones(close.shape, dtype=bool),
        calendar="24/7",
        bar_seconds=86_400,
    )


def fitted(rows=range(100), *, steps=STEPS, prices="adjusted"):
    return PreprocessingPipeline(steps, prices=prices).fit(make_bars(), rows)


def save(manager, pipeline):
    return manager.save(pipeline, data_fingerprint="data", rows=pipeline.fitted_rows)


@pytest.fixture
def manager(tmp_path):
    return PreprocessorManager(tmp_path / "preprocessors")


def test_save_and_load(manager):
    pipeline = fitted()
    metadata = save(manager, pipeline)
    assert (metadata.version, pipeline.version) == ("v1.0.0", "v1.0.0")
    assert sorted(path.name for path in manager.root.iterdir()) == ["metadata_v1.0.0.json", "preprocessor_v1.0.0.pkl"]
    assert metadata.sha256 == safe_io.sha256_file(manager.root / "preprocessor_v1.0.0.pkl")
    assert metadata.rows == (0, 100)
    assert metadata.feature_names == ("log_return_1", "log_return_5")
    assert manager.list() == [metadata]
    for reference in ("v1.0.0", "1.0.0", pipeline.content_hash, f"sha256:{pipeline.content_hash[:7]}"):
        loaded = manager.load(reference)
        assert loaded.version == "v1.0.0"
        assert loaded.content_hash == pipeline.content_hash
        assert loaded.transform(make_bars()).values.tobytes() == pipeline.transform(make_bars()).values.tobytes()


def test_versions_follow_contract_and_content(manager):
    versions = [
        save(manager, pipeline).version
        for pipeline in (
            fitted(),
            fitted(range(90)),  # another fit
            fitted(prices="raw"),  # another contract
            fitted(range(80)),  # back to the first contract
            fitted(range(90)),  # stored already
            fitted(range(90), prices="raw"),
            fitted(steps=STEPS[:1]),
        )
    ]
    assert versions == ["v1.0.0", "v1.1.0", "v2.0.0", "v1.2.0", "v1.1.0", "v2.1.0", "v3.0.0"]
    assert [metadata.version for metadata in manager.list()] == sorted(set(versions))


def test_saving_rows_that_were_not_fitted_is_refused(manager):
    with pytest.raises(PreprocessingError, match=r"was fitted on range\(0, 100\), not on range\(0, 99\)"):
        manager.save(fitted(), data_fingerprint="data", rows=range(99))


def test_unknown_and_ambiguous_references_list_candidates(manager):
    with pytest.raises(RegistryError, match=r"'v1.0.0' is unknown .*candidates: none stored"):
        manager.load("v1.0.0")
    pipelines = [fitted(), fitted(range(90))]
    hashes = [save(manager, pipeline).content_hash for pipeline in pipelines]
    for reference in ("v1.0.1", "../v1.0.0", "v1.0", "latest", hashes[0][:6], "f" * 64):
        with pytest.raises(RegistryError, match=rf"is unknown .*candidates: v1.0.0 \({hashes[0][:12]}\), v1.1.0"):
            manager.load(reference)
    for number, digits in enumerate(("abcdef01", "abcdef02")):
        rewrite(manager.root / f"metadata_v1.{number}.0.json", {"content_hash": digits * 8})
    with pytest.raises(RegistryError, match="'abcdef0' is ambiguous"):
        manager.find("abcdef0")
    assert manager.find("abcdef02").version == "v1.1.0"


def rewrite(path, change):
    """Change fields and the checksum with them, as somebody on purpose would."""
    fields = safe_io.read_checked_json(path) | change
    safe_io.write_bytes(path, safe_io.checked_json(fields))


def replace_bytes(path, data):
    path.unlink()
    path.write_bytes(data)


def test_every_flipped_bit_is_refused(manager):
    save(manager, fitted())
    path = manager.root / "preprocessor_v1.0.0.pkl"
    original = path.read_bytes()
    for position in range(0, len(original), 37):
        data = bytearray(original)
        data[position] ^= 4
        replace_bytes(path, data)
        with pytest.raises(RegistryError, match=r"preprocessor_v1\.0\.0\.pkl is altered: sha256 is .*, expected"):
            manager.load("v1.0.0")
    replace_bytes(path, original[:-1])
    with pytest.raises(RegistryError, match="is altered"):
        manager.load("v1.0.0")
    path.unlink()
    with pytest.raises(RegistryError, match="cannot read"):
        manager.load("v1.0.0")


@pytest.mark.parametrize("name", ["preprocessor_v1.0.0.pkl", "metadata_v1.0.0.json"])
def test_the_registry_names_what_happened_to_a_stored_pipeline(manager, name):
    save(manager, fitted())
    save(manager, fitted(range(90)))
    root, path = manager.root.parent, manager.root / name
    assert verify(root, deep=True) == []
    original = path.read_bytes()
    rng = random.Random(name)
    for _ in range(100):
        data = bytearray(original)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        replace_bytes(path, bytes(data))
        assert name in [finding.path.split("/")[-1] for finding in verify(root)]
        with pytest.raises(RegistryError, match=name):
            manager.load("v1.0.0")
    replace_bytes(path, original[:-1])
    assert not is_clean(verify(root))
    path.rename(path.with_name("renamed"))
    found = {finding.path for finding in verify(root)}
    assert found >= {"preprocessors/renamed", "preprocessors/preprocessor_v1.0.0.pkl"}
    path.with_name("renamed").rename(path)
    replace_bytes(path, (manager.root / name.replace("v1.0", "v1.1")).read_bytes())
    assert not is_clean(verify(root))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_type_has_a_template_that_streams(manager, model_type):
    """Stored and loaded again, it gives for one bar at a time what it gives for the whole series."""
    bars = make_bars(320)
    pipeline = manager.create(template=model_type).fit(bars, range(280))
    loaded = manager.load(save(manager, pipeline).version)
    whole = loaded.transform(bars).values
    for stop in range(loaded.warmup_bars + 1, 321, 17):
        assert loaded.transform(bars.rows(0, stop)).values[-1].tobytes() == whole[stop - 1].tobytes()


def test_a_file_that_runs_code_is_refused_even_with_its_digest(manager, tmp_path):
    save(manager, fitted())
    program = b"cposix\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "canary").encode()
    replace_bytes(manager.root / "preprocessor_v1.0.0.pkl", program)
    rewrite(manager.root / "metadata_v1.0.0.json", {"sha256": safe_io.sha256_bytes(program)})
    with pytest.raises(UnsafeFileError):
        manager.load("v1.0.0")
    assert not (tmp_path / "canary").exists()


def test_another_pipelines_file_and_digest_are_refused(manager):
    save(manager, fitted())
    second = save(manager, fitted(range(90)))
    shutil.copy(manager.root / "preprocessor_v1.1.0.pkl", manager.root / "copy")
    (manager.root / "copy").replace(manager.root / "preprocessor_v1.0.0.pkl")
    rewrite(manager.root / "metadata_v1.0.0.json", {"sha256": second.sha256})
    with pytest.raises(RegistryError, match="does not have the content that its metadata states"):
        manager.load("v1.0.0")


@pytest.mark.parametrize(
    "change", [{"version": "v9.0.0"}, {"warmup_bars": "5"}, {"rows": 5}, {"surplus": 1}, {"sha256": None}]
)
def test_damaged_metadata_is_named(manager, change):
    save(manager, fitted())
    rewrite(manager.root / "metadata_v1.0.0.json", change)
    with pytest.raises(RegistryError, match=r"metadata_v1\.0\.0\.json"):
        manager.list()


@pytest.mark.parametrize("name", ["metadata_v1.0.0.json", "preprocessor_v1.0.0.pkl"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_file_stands_in_nobodys_way(manager, name, damage):
    first, second = fitted(), fitted(range(90))
    save(manager, first)
    path = manager.root / name
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert save(manager, second).version == "v1.1.0"
    assert manager.load("v1.1.0").content_hash == second.content_hash
    assert manager.load(second.content_hash).version == "v1.1.0"
    with pytest.raises(RegistryError):
        manager.load("v1.0.0")
    if damage is not None:
        assert name in [finding.path.split("/")[-1] for finding in verify(manager.root.parent)]
    other = save(manager, first).version  # again, where the first cannot be recognised any more
    assert other == ("v1.2.0" if name.startswith("metadata") else "v1.0.0")
    assert save(manager, fitted(prices="raw")).version == "v2.0.0"


@pytest.mark.parametrize(
    ("crash_at", "call"),
    [
        (name, call)
        for name, calls in {"link_new": 2, "write_new": 2, "sync": 4}.items()
        for call in range(1, calls + 1)
    ],
)
def test_a_writer_that_dies_leaves_no_half_version(manager, monkeypatch, crash_at, call):
    """Stop at each link, file or wait for the disk: nothing is visible, and the next save succeeds."""
    owner = {"link_new": module, "write_new": Layout, "sync": safe_io}[crash_at]
    real, calls = getattr(owner, crash_at), []

    def dies(*arguments, **named):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(owner, crash_at, dies)
    with pytest.raises(KeyboardInterrupt):
        save(manager, fitted())
    monkeypatch.undo()
    committed = (crash_at, call) == ("sync", 4)
    assert [metadata.version for metadata in manager.list()] == (["v1.0.0"] if committed else [])
    metadata = save(manager, fitted())
    assert manager.load(metadata.version).content_hash == fitted().content_hash
    assert not list(manager.layout.temp.iterdir())


def fail_at_the_second_link(monkeypatch, before):
    def link(source, target):
        if target.name.startswith("metadata"):
            before()
        return real(source, target)

    real = module.link_new
    monkeypatch.setattr(module, "link_new", link)


def test_what_a_dead_writer_left_is_collected_and_its_number_stays_closed(manager, monkeypatch):
    def die():
        raise KeyboardInterrupt

    save(manager, fitted())
    fail_at_the_second_link(monkeypatch, die)
    with pytest.raises(KeyboardInterrupt):
        save(manager, fitted(range(90)))
    monkeypatch.undo()
    registry = ModelRegistry(manager.root.parent)
    orphan = "preprocessors/preprocessor_v1.1.0.pkl"
    (finding,) = verify(registry.root)
    assert (finding.severity, finding.path) == ("note", orphan)
    assert registry.collect_garbage(older_than_hours=24) == ()
    assert registry.collect_garbage(older_than_hours=0) == (orphan,)
    assert registry.collect_garbage(older_than_hours=0) == verify_nothing(registry) == ()
    assert save(manager, fitted(range(90))).version == "v1.2.0"
    assert [metadata.version for metadata in manager.list()] == ["v1.0.0", "v1.2.0"]
    with pytest.raises(RegistryError, match="'v1.1.0' is unknown"):
        manager.load("v1.1.0")


def verify_nothing(registry):
    return tuple(verify(registry.root, deep=True))


def test_a_writer_that_was_given_up_is_turned_away_when_it_wakes_up(manager, monkeypatch):
    registry = ModelRegistry(manager.root.parent)
    fail_at_the_second_link(monkeypatch, lambda: registry.collect_garbage(older_than_hours=0))
    with pytest.raises(RegistryError, match="gave up storing v1.0.0"):
        save(manager, fitted())
    monkeypatch.undo()
    assert manager.list() == []
    assert save(manager, fitted()).version == "v2.0.0"
    assert verify_nothing(registry) == ()


def test_a_full_disk_is_named_and_leaves_nothing(manager, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(RegistryError, match=r"storing a pipeline in .*preprocessors failed: .*No space left"):
        save(manager, fitted())
    assert list(manager.root.iterdir()) == list(manager.layout.temp.iterdir()) == []


def _save_many(root, start, barrier, results):
    manager = PreprocessorManager(root)
    pipelines = [fitted(range(20 + start + i)) for i in range(5)]
    barrier.wait()
    results.put([(save(manager, pipeline).version, pipeline.content_hash) for pipeline in pipelines])


def test_processes_saving_at_once_get_distinct_versions(manager):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_save_many, args=(manager.root, 10 * number, barrier, results)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    saved = [pair for _ in workers for pair in results.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert sorted(version for version, _ in saved) == sorted(f"v1.{number}.0" for number in range(15))
    for version, content_hash in saved:
        assert manager.load(version).content_hash == content_hash


def test_create(manager):
    assert manager.create(template="sac").steps == manager.create(template="default").steps
    assert manager.create(steps=STEPS, prices="raw").prices == "raw"
    for arguments in ({}, {"template": "sac", "steps": STEPS}):
        with pytest.raises(PreprocessingError, match="give exactly one of the two"):
            manager.create(**arguments)


def table_bytes(manager, *, steps=STEPS, bars=None, rows=range(100), prices="adjusted"):
    pipeline = manager.create(steps=steps, prices=prices)
    fit, table = manager.fit_transform(pipeline, make_bars() if bars is None else bars, rows)
    assert table.values.tobytes() == fit.transform(make_bars() if bars is None else bars).values.tobytes()
    return table.values.tobytes()


def test_the_cache_is_used(manager, monkeypatch):
    expected = table_bytes(manager)
    monkeypatch.setattr(PreprocessingPipeline, "fit", None)
    pipeline, table = manager.fit_transform(manager.create(steps=STEPS), make_bars(), range(100))
    monkeypatch.setattr(PreprocessingPipeline, "transform", None)
    assert manager.transform(pipeline, make_bars()).values.tobytes() == expected == table.values.tobytes()


def test_whatever_changes_misses_the_cache(manager, monkeypatch):
    table_bytes(manager)
    files = len(list(manager.cache.folder.iterdir()))
    assert files == 2
    changes = [
        {"steps": [StepSpec("log_return", {"lags": [1, 6]}), STEPS[1]]},
        {"steps": [STEPS[0], StepSpec("robust_scaler")]},
        {"bars": make_bars(seed=1)},
        {"rows": range(99)},
        {"rows": range(1, 100)},
        {"prices": "raw"},
    ]
    for change in changes:
        table_bytes(manager, **change)
        files += 2
        assert len(list(manager.cache.folder.iterdir())) == files
    table_bytes(manager, bars=make_bars(119), rows=range(100))  # the same fit, fewer bars to transform
    assert len(list(manager.cache.folder.iterdir())) == files + 1
    monkeypatch.setattr("trade_agent.preprocessing.cache.code_fingerprint", lambda: "other code")
    table_bytes(manager)
    assert len(list(manager.cache.folder.iterdir())) == files + 3


def test_a_damaged_cache_file_is_a_miss(manager):
    expected = table_bytes(manager)
    for path in list(manager.cache.folder.iterdir()):
        original = path.read_bytes()
        for damage in (original[:-1], original[:100], b"", original[:200] + b"\x01" + original[201:]):
            path.write_bytes(damage)
            assert table_bytes(manager) == expected
            assert path.read_bytes() == original


def test_the_cache_forgets_the_oldest_files(manager):
    manager.cache.max_bytes = 10_000
    for seed in range(12):
        table_bytes(manager, bars=make_bars(seed=seed))
    files = list(manager.cache.folder.iterdir())
    assert 2 <= len(files) < 24
    assert sum(path.stat().st_size for path in files) <= 10_000
