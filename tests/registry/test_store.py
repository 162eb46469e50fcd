import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trade_agent import safe_io
from trade_agent.errors import RegistryError, UnsafeFileError
from trade_agent.registry import layout as layout_module
from trade_agent.registry import snapshot
from trade_agent.training.model_registry import ModelMetadata, ModelRegistry, Objective, PerformanceGrade, verify

REPOSITORY = Path(__file__).resolve().parents[2]


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def rewrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


# ---------------------------------------------------------------- what is registered comes back


def test_round_trip_and_layout(registry, make_draft):
    draft = make_draft(grade=PerformanceGrade.A_MINUS)
    metadata = registry.register(**draft)
    assert metadata.model_id == "sac_v1.0.0_grade_A-_sharpe_0.42"
    assert files(registry.root / "sac") == [
        "config_v1.0.0.json",
        "metadata_v1.0.0.json",
        "preprocessor_v1.0.0.pkl",
        "sac_v1.0.0_grade_A-_sharpe_0.42.pth",
    ]
    assert files(registry.root) == ["README.md", "registry.json"]
    assert list((registry.root / "temp").iterdir()) == []
    loaded = registry.load("sac@latest")
    assert loaded.metadata == metadata == registry.get(metadata.model_id)
    assert torch.equal(loaded.state["policy"]["weight"], draft["state"]["policy"]["weight"])
    assert loaded.config == draft["config"]
    assert np.array_equal(loaded.preprocessor_state["steps"][0]["mean"], [0.0, 1.0, 2.0])
    assert [record.id for record in registry.list()] == [metadata.model_id]
    assert verify(registry.root, deep=True) == []


def test_metadata_survives_json(registry, make_draft):
    metadata = registry.register(**make_draft(tags=["x"], notes="ünïcode"))
    assert ModelMetadata.from_json(metadata.to_json(), name="m") == metadata
    damaged = metadata.to_json().replace(b'"seed": 0', b'"seed": 7')
    with pytest.raises(RegistryError, match=r"m was altered"):
        ModelMetadata.from_json(damaged, name="m")
    with pytest.raises(RegistryError, match="schema"):
        ModelMetadata.from_json(safe_io.checked_json({"schema": 99}), name="m")


def test_files_are_read_only_and_the_digests_are_those_of_sha256sum(registry, make_draft):
    metadata = registry.register(**make_draft())
    for name, info in metadata.files.items():
        path = registry.root / "sac" / name
        assert path.stat().st_mode & 0o777 == 0o444
        assert subprocess.run(["sha256sum", path], capture_output=True, check=True).stdout[:64].decode() == info.sha256


def test_numbers_that_are_not_finite_are_none_and_the_id_says_so(registry, make_draft):
    metadata = registry.register(
        **make_draft(
            grade="F",
            metric_token=("sharpe", math.nan),
            objective=Objective(name="sharpe", value=math.inf, direction="max"),
            metrics={"sharpe": math.nan, "sortino": np.float64("inf"), "trades": 3},
        )
    )
    assert metadata.model_id == "sac_v1.0.0_grade_F_sharpe_nan"
    assert metadata.metrics == {"sharpe": None, "sortino": None, "trades": 3}
    assert metadata.objective.value is None


def test_versions_follow_contract_and_recipe(registry, make_draft):
    changes = [
        ({}, "1.0.0", []),
        ({"seed": 1}, "1.0.1", []),
        ({"recipe": {"gamma": 0.9}}, "1.1.0", ["recipe.gamma"]),
        ({"contract": {"features": ["return"], "window_bars": 32}, "recipe": {"gamma": 0.9}}, "2.0.0",
         ["contract.window_bars"]),
        ({"state": {"policy": {"weight": torch.zeros(4, 2)}}}, "3.0.0", ["contract.state_layout"]),
        ({"recipe": {"gamma": 0.9}}, "1.1.1", []),
    ]  # fmt: skip
    for number, (change, version, keys) in enumerate(changes):
        metadata = registry.register(**make_draft(**change, run_id=f"r{number}"))
        assert metadata.version == version
        assert set(keys) <= set(metadata.bump.differing_keys)
    assert registry.register(**make_draft(run_id="forced", bump="major")).version == "4.0.0"
    with pytest.raises(RegistryError, match="bump was asked for"):
        registry.register(**make_draft(run_id="low", recipe={"gamma": 0.1}, bump="patch"))


def test_a_run_that_registers_again_gets_its_first_version(registry, make_draft):
    first = registry.register(**make_draft(run_id="job-7"))
    again = ModelRegistry(registry.root).register(**make_draft(run_id="job-7", seed=5))
    assert again == first
    assert len(registry.list()) == 1
    assert registry.register(**make_draft(run_id="job-7", model_type="ppo")).model_type == "ppo"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "dqn"}, "unknown model type 'dqn'"),
        ({"grade": "Z"}, "not a grade"),
        ({"run_id": "../x"}, "run id"),
        ({"metric_token": ("a/b", 1.0)}, "metric name"),
        ({"preprocessor": b"junk"}, "the preprocessor"),
        ({"state": {"x": object()}}, r"state\['x'\]"),
        ({"contract": {"x": math.nan}}, "cannot be stored"),
        ({"config": {"_target_": "os.system"}}, "_target_"),
        ({"config": {"a": [{"b": "${oc.env:HOME}"}]}}, "oc.env"),
        ({"notes": 3}, "notes is int"),
    ],
)
def test_wrong_drafts_are_refused_and_leave_nothing(registry, make_draft, change, said):
    with pytest.raises(RegistryError, match=said):
        registry.register(**make_draft(**change))
    assert registry.list() == ()
    left = {path.name for path in registry.root.rglob("*") if path.is_file()}
    assert left <= {"format.json", "README.md"}


def test_aliases_move_and_reserved_names_are_refused(registry, make_draft):
    ids = [registry.register(**make_draft(seed=seed)).model_id for seed in (0, 1)]
    registry.set_alias(ids[0], "champion")
    assert registry.resolve("sac@champion") == ids[0]
    registry.set_alias("sac@latest", "champion")
    assert registry.resolve("sac@champion") == ids[1]
    assert verify(registry.root) == []
    for alias in ("best", "latest", "1", "A", "../x", ""):
        with pytest.raises(RegistryError, match="cannot be an alias"):
            registry.set_alias(ids[0], alias)


def test_paths_are_references_when_they_lie_inside(registry, make_draft, monkeypatch):
    identifier = registry.register(**make_draft()).model_id
    monkeypatch.chdir(registry.root.parent)
    for path in (registry.root / "sac" / f"{identifier}.pth", f"models/sac/{identifier}.pth", f"sac/{identifier}.pth",
                 "./models/sac/metadata_v1.0.0.json"):  # fmt: skip
        assert registry.resolve(str(path)) == identifier
    for path in (f"/etc/{identifier}.pth", f"models/sac/../../{identifier}.pth", "../../etc/passwd", "sac/x.pth"):
        with pytest.raises(RegistryError, match="not a model"):
            registry.resolve(path)


def test_find_gives_metadata_newest_first(registry, make_draft):
    for seed in range(4):
        registry.register(**make_draft(seed=seed))
    assert [m.seed for m in registry.find("sac", lambda metadata: metadata.seed % 2 == 1)] == [3, 1]
    assert registry.find("ppo", lambda metadata: True) == ()


def test_lineage_goes_both_ways(registry, make_draft):
    forecaster = registry.register(**make_draft(model_type="cnn_lstm"))
    agent = registry.register(**make_draft(parents=[registry.pin("cnn_lstm@latest", role="forecaster")]))
    parents = [registry.pin("cnn_lstm@1", role="forecaster"), registry.pin("sac@1", role="agent")]
    hybrid = registry.register(**make_draft(model_type="hybrid", parents=parents))
    up = [(link.parent, link.role, link.depth) for link in registry.lineage("hybrid@latest")["up"]]
    assert up == [
        (forecaster.model_id, "forecaster", 1),
        (agent.model_id, "agent", 1),
        (forecaster.model_id, "forecaster", 2),
    ]
    down = registry.lineage("cnn_lstm@latest")["down"]
    assert {(link.child, link.depth) for link in down} == {
        (agent.model_id, 1),
        (hybrid.model_id, 1),
        (hybrid.model_id, 2),
    }


def test_a_parent_must_be_what_was_pinned(registry, make_draft):
    registry.register(**make_draft())
    pinned = registry.pin("sac@1", role="agent")
    wrong = type(pinned)(role="agent", id=pinned.id, version="1.0.0", metadata_sha256="0" * 64,
                         weights_sha256=pinned.weights_sha256)  # fmt: skip
    with pytest.raises(RegistryError, match="not what was pinned"):
        registry.register(**make_draft(model_type="hybrid", parents=[wrong]))


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["sac_v1.0.0_grade_B_sharpe_0.42.pth", "preprocessor_v1.0.0.pkl", "config_v1.0.0.json",
                                  "metadata_v1.0.0.json"])  # fmt: skip
@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "delete"])
def test_damage_is_named_by_load_and_verify(registry, make_draft, name, damage):
    registry.register(**make_draft())
    registry.register(**make_draft(seed=1, config={"other": 1}, preprocessor=safe_io.dump_arrays({"other": 1})))
    path = registry.root / "sac" / name
    good = path.read_bytes()
    other = path.with_name(name.replace("1.0.0", "1.0.1"))
    places = range(0, len(good), len(good) // 9)
    variants = {
        "flip": [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in places],
        "cut": [good[:-1], good[: len(good) // 2], b""],
        "swap": [other.read_bytes()],
        "delete": [None],
    }
    for data in variants[damage]:
        if data is None:
            path.unlink()
        else:
            rewrite(path, data)
        for with_snapshot in (True, False):
            if not with_snapshot:
                (registry.root / "registry.json").unlink(missing_ok=True)
            with pytest.raises(RegistryError) as caught:
                registry.load("sac@1.0.0")
            if name != "metadata_v1.0.0.json":  # without metadata the model is unknown, and its file is not named
                assert name in str(caught.value)
            findings = [f for f in verify(registry.root) if f.severity == "error" or not with_snapshot]
            assert name in " ".join(f.path + f.message for f in findings)
        rewrite(path, good) if path.exists() else path.write_bytes(good)
        registry.rebuild()
    assert registry.load("sac@1.0.1").metadata.seed == 1


def test_both_digests_are_named(registry, make_draft):
    metadata = registry.register(**make_draft())
    path = registry.root / "sac" / "config_v1.0.0.json"
    recorded = metadata.files[path.name].sha256
    found = safe_io.sha256_bytes(b"{}\n")
    rewrite(path, b"{}\n")
    with pytest.raises(RegistryError, match=rf"config_v1.0.0.json was altered.*{found}.*{recorded}"):
        registry.load("sac@1")


def test_hostile_content_with_matching_digests_is_still_refused(registry, make_draft, tmp_path):
    """Somebody who can rewrite the metadata gets data into the program, never code."""
    canary = tmp_path / "canary"

    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    buffer = io.BytesIO()
    torch.save({"a": Touch()}, buffer)
    hostile = {
        "model": buffer.getvalue(),
        "preprocessor": pickle.dumps(Touch(), 5),
        "config": safe_io.canonical_json({"x": {"_target_": "os.system", "_args_": [f"touch {canary}"]}}),
    }
    for role, content in hostile.items():
        metadata = registry.register(**make_draft(run_id=role))
        assert registry.list()
        name = {"model": f"{metadata.model_id}.pth", "preprocessor": f"preprocessor_v{metadata.version}.pkl",
                "config": f"config_v{metadata.version}.json"}[role]  # fmt: skip
        rewrite(registry.root / "sac" / name, content)
        info = type(metadata.files[name])(sha256=safe_io.sha256_bytes(content), size=len(content))
        forged = {field: getattr(metadata, field) for field in metadata.__dataclass_fields__}
        forged["files"] = metadata.files | {name: info}
        rewrite(registry.root / "sac" / f"metadata_v{metadata.version}.json", ModelMetadata(**forged).to_json())
        with pytest.raises(RegistryError, match="was altered"):  # the digest of the metadata was seen before
            registry.load(metadata.model_id)
        registry.rebuild()
        with pytest.raises(UnsafeFileError, match=name):
            registry.load(metadata.model_id)
        assert any(name in f.path for f in verify(registry.root, deep=True))
    assert not canary.exists()


def test_a_symbolic_link_is_not_followed(registry, make_draft, tmp_path):
    metadata = registry.register(**make_draft())
    path = registry.root / "sac" / f"{metadata.model_id}.pth"
    path.rename(tmp_path / "elsewhere.pth")
    path.symlink_to(tmp_path / "elsewhere.pth")
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        registry.load("sac@1")
    (registry.root / "sac").rename(tmp_path / "sac")
    (registry.root / "sac").symlink_to(tmp_path / "sac")
    with pytest.raises(RegistryError, match="symbolic link"):
        registry.list()


def test_verify_names_strangers_taint_and_unfinished_work(registry, make_draft):
    registry.register(**make_draft())
    registry.register(**make_draft(model_type="hybrid", parents=[registry.pin("sac@1", role="agent")]))
    registry.register(**make_draft(model_type="ensemble", parents=[registry.pin("hybrid@1", role="member")]))
    assert verify(registry.root) == []
    rewrite(registry.root / "sac" / "config_v1.0.0.json", b"{}\n")
    (registry.root / "ppo" / "notes.txt").write_text("mine")
    strangers = ["stray.pth", "sac_old", "archived/cnn", ".registry/notes", ".registry/events/junk.txt", "temp/mine"]
    for name in strangers:
        (registry.root / name).mkdir(parents=True)
    (registry.root / "temp" / f"host-1-{'0' * 12}").mkdir()
    (registry.root / "sac" / ".claims" / "v1.0.0").unlink()
    (registry.root / "registry.json").write_text("{}")
    found = {(f.severity, f.kind, f.path) for f in verify(registry.root)}
    assert found == {
        ("error", "file", "sac/config_v1.0.0.json"),
        ("error", "tainted", "hybrid/metadata_v1.0.0.json"),
        ("error", "tainted", "ensemble/metadata_v1.0.0.json"),
        ("error", "unknown", "ppo/notes.txt"),
        ("error", "claim", "sac/.claims/v1.0.0"),
        ("error", "snapshot", "registry.json"),
        ("note", "temporary", f"temp/host-1-{'0' * 12}"),
        *(("note", "unknown", name) for name in strangers),
    }


# ---------------------------------------------------------------- registry.json is derived


def test_the_kept_snapshot_equals_a_rebuilt_one_byte_for_byte(registry, make_draft, monkeypatch):
    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", -1)  # it is always old
    for seed in range(3):
        registry.register(**make_draft(seed=seed))
        registry.set_alias("sac@latest", f"alias-{seed % 2}")
        registry.register(**make_draft(model_type="hybrid", seed=seed, parents=[registry.pin("sac@1", role="agent")]))
    kept = (registry.root / "registry.json").read_bytes()
    (registry.root / "registry.json").unlink()
    registry.rebuild()
    assert (registry.root / "registry.json").read_bytes() == kept
    json.loads(kept)


@pytest.mark.parametrize("state", ["missing", "empty", "garbage", "flipped", "old", "other program"])
def test_answers_do_not_depend_on_the_snapshot(registry, make_draft, state, monkeypatch):
    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", -1)
    registry.register(**make_draft())
    path = registry.root / "registry.json"
    old = path.read_bytes()
    registry.register(**make_draft(seed=1))
    registry.set_alias("sac@1.0.1", "champion")
    expected = registry.list()
    new = path.read_bytes()
    content = {"empty": b"", "garbage": os.urandom(300), "flipped": new.replace(b'"B"', b'"A"', 1), "old": old,
               "other program": b'{"models": {}}\n'}  # fmt: skip
    path.unlink() if state == "missing" else path.write_bytes(content[state])
    registry = ModelRegistry(registry.root, durability="relaxed")
    assert registry.list() == expected
    assert registry.resolve("sac@champion") == expected[1].id
    assert registry.load("sac@latest").metadata.seed == 1
    registry.register(**make_draft(seed=2))
    assert verify(registry.root) == []


def test_the_snapshot_is_not_rewritten_for_every_model(registry, make_draft, monkeypatch):
    def stored():
        return len(json.loads((registry.root / "registry.json").read_bytes())["models"])

    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", 1e12)
    monkeypatch.setattr(snapshot, "REFRESH_CHANGES", 5)
    found = []
    for seed in range(12):
        registry.register(**make_draft(seed=seed))
        found.append(stored())
    assert found == [1, 1, 1, 1, 1, 6, 6, 6, 6, 6, 11, 11]
    assert len(registry.list()) == len(ModelRegistry(registry.root).list()) == 12
    assert verify(registry.root) == []
    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", -1)
    registry.register(**make_draft(seed=12))
    assert stored() == 13


def test_a_snapshot_that_cannot_be_written_is_no_failure(registry, make_draft, monkeypatch, caplog):
    (registry.root / "registry.json").mkdir(parents=True)
    assert registry.register(**make_draft()).version == "1.0.0"
    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", -1)
    assert registry.register(**make_draft(seed=1)).version == "1.0.1"
    assert "could not be refreshed" in caplog.text
    assert [record.version for record in registry.list()] == ["1.0.0", "1.0.1"]


def test_an_archived_model_is_shown_on_request_only(registry, make_draft):
    metadata = registry.register(**make_draft())
    archive = registry.root / "archived" / "sac"
    archive.mkdir()
    for name in [*metadata.files, "metadata_v1.0.0.json"]:
        (registry.root / "sac" / name).rename(archive / name)
    assert registry.list() == ()
    assert [record.state for record in registry.list(include_archived=True)] == ["archived"]
    assert registry.load("sac@1.0.0", include_archived=True).metadata == metadata
    assert registry.register(**make_draft(seed=9)).version == "1.0.1"
    assert verify(registry.root) == []


def test_another_layout_is_refused(registry, make_draft):
    registry.register(**make_draft())
    rewrite(registry.root / ".registry" / "format.json", b'{"layout": 1}\n')
    with pytest.raises(RegistryError, match="use the trade_agent that wrote it"):
        ModelRegistry(registry.root)


def test_a_disk_without_exclusive_links_is_refused(registry, make_draft, monkeypatch):
    monkeypatch.setattr(layout_module.os, "link", lambda source, target: None)
    with pytest.raises(RegistryError, match="not exclusive"):
        registry.register(**make_draft())


def test_listing_does_not_import_torch(registry, make_draft):
    registry.register(**make_draft())
    code = (
        "import sys; from trade_agent.training.model_registry import ModelRegistry, verify\n"
        f"r = ModelRegistry({str(registry.root)!r}); assert len(r.list()) == 1; r.get('sac@latest'); r.lineage('sac')\n"
        f"assert verify({str(registry.root)!r}) == []; assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
