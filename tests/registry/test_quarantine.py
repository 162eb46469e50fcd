"""Files from elsewhere: what scan says of them, and what import makes of them."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.safe_io.corpus import CONFIG, PKL, PTH, benign, code_programs, corpus, zipped
from trade_agent import safe_io
from trade_agent.errors import ConfigError, RegistryError, UnsafeFileError
from trade_agent.registry.quarantine import import_model
from trade_agent.registry.scan import scan
from trade_agent.registry.verify import is_clean, verify
from trade_agent.training.model_registry import ModelRegistry

SUFFIX = {PTH: ".pth", PKL: ".pkl", CONFIG: ".json"}


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a file was run"


@pytest.fixture
def hostile(tmp_path, canary):
    """A folder with every hostile file."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for number, case in enumerate(corpus(canary)):
        (folder / f"{number:03d}{SUFFIX[case.door]}").write_bytes(case.data)
    return folder


def test_every_hostile_file_is_refused_with_a_reason(hostile):
    verdicts = scan(hostile)
    assert len(verdicts) == len(list(hostile.iterdir())) >= 46
    assert [verdict.path for verdict in verdicts if verdict.safe or not verdict.reason] == []


@pytest.mark.parametrize("deep", [False, True])
def test_no_benign_file_is_refused(tmp_path, deep):
    if deep:
        pytest.importorskip("picklescan", reason="needs the extra scan")
    for number, (_, door, data) in enumerate(benign()):
        (tmp_path / f"{number:02d}{SUFFIX[door]}").write_bytes(data)
    verdicts = scan(tmp_path, deep=deep)
    assert len(verdicts) > 15
    assert [verdict for verdict in verdicts if not verdict.safe] == []


def test_names_do_not_decide(tmp_path):
    (tmp_path / "evil.json").write_bytes(b"\x80\x04cposix\nsystem\n.")
    (tmp_path / "model.txt").write_bytes(safe_io.dump_tensors({"w": torch.ones(2)}))
    (tmp_path / "notes.pth").write_bytes(b"some words")
    (tmp_path / "poisoned.PT2").write_bytes(safe_io.dump_tensors({"w": torch.ones(2)}))
    found = {os.path.basename(verdict.path): (verdict.kind, verdict.safe) for verdict in scan(tmp_path)}
    assert found == {
        "evil.json": ("arrays", False),
        "model.txt": ("checkpoint", True),
        "notes.pth": ("unknown", False),
        "poisoned.PT2": ("unknown", False),
    }


def test_a_poisoned_program_is_refused_before_torch_sees_it(tmp_path, canary):
    """`torch.export.load` falls back to unsafe loading: such a file is a program, whatever it holds."""
    exported = {
        "archive_format": b"pt2",
        "models/model.json": b"{}",
        "data/constants/0.pt": code_programs(canary)["system protocol 2"],
    }
    for name, data in (
        ("poisoned.pt2", zipped([(f"archive/{key}", value) for key, value in exported.items()])),
        ("renamed.pth", zipped([(f"archive/{key}", value) for key, value in exported.items()])),
        ("plain.pt2", safe_io.dump_tensors({"w": torch.ones(2)})),
    ):
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys; from trade_agent.registry.scan import scan\n"
        "assert [verdict.safe for verdict in scan(sys.argv[1])] == [False] * 3\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_and_pipes_are_refused_and_folders_searched(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    found = [(os.path.relpath(verdict.path, tmp_path), verdict.safe) for verdict in scan(tmp_path)]
    assert found == [("link", False), ("pipe", False), ("a/b/x.json", True)]
    assert [verdict.safe for verdict in scan(tmp_path / "link")] == [False]
    with pytest.raises(ConfigError, match="there is no"):
        scan(tmp_path / "missing")


def test_a_deep_scan_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "picklescan", None)
    with pytest.raises(ConfigError, match=r"pip install 'trade-agent\[scan\]'"):
        scan(tmp_path, deep=True)


# ---------------------------------------------------------------- import


@pytest.fixture
def legacy(tmp_path):
    """A checkpoint as torch.save writes it, and the configuration it was built with."""
    torch.save({"model_state_dict": torch.nn.Linear(3, 2).state_dict(), "epoch": 7}, tmp_path / "old.pth")
    (tmp_path / "old.json").write_text(json.dumps({"hidden": 2}))
    return tmp_path / "old.pth", tmp_path / "old.json"


def test_a_legacy_checkpoint_is_registered_in_our_format(registry, legacy):
    path, config = legacy
    metadata = import_model(registry, path, model_type="ppo", config=config, notes="from the old desk")
    assert metadata.model_id == "ppo_v1.0.0_grade_F_imported_nan"
    assert metadata.recipe["origin"] == {"file": "old.pth", "sha256": safe_io.sha256_file(path)}
    assert (metadata.tags, metadata.notes, metadata.grade) == (["imported"], "from the old desk", "F")
    loaded = registry.load("ppo@latest")
    original = torch.load(path, weights_only=True)
    assert loaded.state["epoch"] == 7
    assert loaded.state["model_state_dict"]["weight"].equal(original["model_state_dict"]["weight"])
    assert loaded.config == {"hidden": 2}
    assert is_clean(verify(registry.root, deep=True))
    assert import_model(registry, path, model_type="ppo", config=config) == metadata
    assert len(registry.list()) == 1


def test_the_same_weights_with_another_config_are_another_model(registry, legacy, tmp_path):
    path, config = legacy
    first = import_model(registry, path, model_type="ppo", config=config)
    config.write_text(json.dumps({"hidden": 3}))
    second = import_model(registry, path, model_type="ppo", config=config, notes="the right one")
    assert (second.model_id != first.model_id, second.notes) == (True, "the right one")
    assert registry.load(second.model_id).config == {"hidden": 3}
    assert import_model(registry, path, model_type="sac", config=config).model_type == "sac"


def test_what_was_purged_is_imported_anew_and_what_was_archived_is_named(registry, legacy):
    path, config = legacy
    first = import_model(registry, path, model_type="ppo", config=config).model_id
    registry.archive([first])
    with pytest.raises(RegistryError, match=f"imported before as {first}, which is archived; .* restore {first}"):
        import_model(registry, path, model_type="ppo", config=config)
    registry.purge([first], purge_after_days=0)
    again = import_model(registry, path, model_type="ppo", config=config)
    assert again.version == "1.0.1"
    assert registry.load(again.model_id).state["epoch"] == 7
    assert import_model(registry, path, model_type="ppo", config=config) == again


def test_a_preprocessor_of_ours_comes_along(registry, legacy, tmp_path):
    state = {"schema": 1, "steps": []}
    (tmp_path / "p.pkl").write_bytes(safe_io.dump_arrays(state))
    import_model(registry, legacy[0], model_type="ppo", config=legacy[1], preprocessor=tmp_path / "p.pkl")
    assert registry.load("ppo@1").preprocessor_state == state


def test_what_is_missing_is_said_in_one_line(registry, legacy, tmp_path):
    path, config = legacy
    with pytest.raises(ConfigError, match=r"no metadata beside .*; give --type .*hybrid.* and --config FILE\.json"):
        import_model(registry, path)
    with pytest.raises(RegistryError, match="unknown model type 'dqn'"):
        import_model(registry, path, model_type="dqn", config=config)
    with pytest.raises(RegistryError, match="cannot read"):
        import_model(registry, tmp_path / "missing.pth", model_type="ppo", config=config)
    for content, reason in (
        ("[]", "not a JSON object"),
        ('{"a": "${oc.env:HOME}"}', "oc.env"),
        ("{", "not valid JSON"),
    ):
        config.write_text(content)
        with pytest.raises((ConfigError, RegistryError), match=reason):
            import_model(registry, path, model_type="ppo", config=config)
    (tmp_path / "kind.pth").write_bytes(safe_io.dump_tensors({"kind": "sac", "w": torch.ones(1)}))
    with pytest.raises(ConfigError, match="says that it is a sac; use --type sac"):
        import_model(registry, tmp_path / "kind.pth", model_type="ppo", config=config)
    assert registry.list() == ()


def test_a_whole_module_is_refused_with_the_way_out(registry, legacy, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UnsafeFileError, match=r"module\.pth"):
        import_model(registry, tmp_path / "module.pth", model_type="ppo", config=legacy[1])
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1)}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "legacy.pth").write_bytes(buffer.getvalue())
    with pytest.raises(UnsafeFileError, match=r"write its state again: torch\.save"):
        import_model(registry, tmp_path / "legacy.pth", model_type="ppo", config=legacy[1])


def test_no_hostile_file_is_imported(registry, hostile, legacy):
    for path in hostile.glob("*.pth"):
        with pytest.raises(UnsafeFileError, match=path.name):
            import_model(registry, path, model_type="ppo", config=legacy[1])
    for path in hostile.glob("*.pkl"):
        with pytest.raises(UnsafeFileError, match=path.name):
            import_model(registry, legacy[0], model_type="ppo", config=legacy[1], preprocessor=path)
    assert registry.list() == ()


@pytest.fixture
def other(tmp_path):
    """Another registry."""
    return ModelRegistry(tmp_path / "other", durability="relaxed")


def model_file(registry, metadata):
    return registry.root / metadata.model_type / f"{metadata.model_id}.pth"


def test_a_model_of_another_registry_stays_what_it_was(registry, other, make_draft):
    parent = other.register(**make_draft(model_type="cnn_lstm", run_id="parent"))
    child = other.register(**make_draft(run_id="child", parents=[other.pin(parent.model_id, role="forecaster")]))
    import_model(registry, model_file(other, parent))
    imported = import_model(registry, model_file(other, child))
    for name in ("grade", "grade_decision", "objective", "metrics", "baselines", "data", "seed", "weights_sha256",
                 "preprocessor", "config_hash", "contract", "contract_hash", "command"):  # fmt: skip
        assert getattr(imported, name) == getattr(child, name), name
    assert imported.recipe["origin"]["model_id"] == child.model_id
    assert [(p.role, p.weights_sha256) for p in imported.parents] == [("forecaster", parent.weights_sha256)]
    assert "imported" in imported.tags
    assert is_clean(verify(registry.root, deep=True))


def test_a_model_of_another_registry_without_its_parent_names_it(registry, other, make_draft):
    parent = other.register(**make_draft(model_type="cnn_lstm", run_id="parent"))
    child = other.register(**make_draft(run_id="child", parents=[other.pin(parent.model_id, role="forecaster")]))
    imported = import_model(registry, model_file(other, child))
    assert imported.parents == []
    assert imported.recipe["origin"]["parents"] == [f"forecaster:{parent.model_id}"]


def test_an_altered_model_of_another_registry_is_refused(registry, other, make_draft):
    metadata = other.register(**make_draft())
    path = model_file(other, metadata)
    with pytest.raises(ConfigError, match="leave --type"):
        import_model(registry, path, model_type="sac")
    config = path.parent / "config_v1.0.0.json"
    config.chmod(0o644)
    config.write_text("{}")
    with pytest.raises(RegistryError, match=r"config_v1\.0\.0\.json was altered"):
        import_model(registry, path)
    renamed = path.with_name("sac_v1.0.0_grade_A_sharpe_9.99.pth")
    path.rename(renamed)
    with pytest.raises(RegistryError, match="describes sac_v1.0.0_grade_B_sharpe_0.42, not"):
        import_model(registry, renamed)
    assert registry.list() == ()


def test_metadata_that_points_outside_is_refused(registry, other, make_draft, tmp_path):
    """Who forges metadata could name files anywhere, if the version in it were believed."""
    path = model_file(other, other.register(**make_draft()))
    beside = path.parent / "metadata_v1.0.0.json"
    fields = json.loads(beside.read_bytes())
    del fields["checksum"]
    fields |= {"version": "1.0.0/../../../../secret"}
    beside.unlink()
    beside.write_bytes(safe_io.checked_json(fields))
    with pytest.raises(RegistryError, match=r"metadata_v1\.0\.0\.json describes"):
        import_model(registry, path)
