"""Names in metadata, claims, events and arguments that point out of the registry: nothing there is read or changed."""

import contextlib
import json

import pytest

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.retention import PrunePolicy
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify

OUTSIDE = "../../victim"


@pytest.fixture
def victim(tmp_path, registry):
    """A model file beside the registry's folder, as it must stay; the folder holds one model."""
    path = tmp_path / "victim.pth"
    path.write_bytes(safe_io.dump_tensors({"step": 1}))
    yield path
    assert path.read_bytes() == safe_io.dump_tensors({"step": 1})
    assert {each.name for each in tmp_path.iterdir()} == {"victim.pth", "models"}


def forge(registry, **changes):
    """Rewrite the metadata of the only model, as somebody who may write the folder would."""
    (path,) = registry.root.glob("sac/metadata_v*.json")
    fields = json.loads(path.read_bytes()) | changes
    del fields["checksum"]
    path.unlink()
    path.write_bytes(safe_io.checked_json(fields))
    (registry.root / "registry.json").unlink(missing_ok=True)
    return ModelRegistry(registry.root, durability="relaxed")


def info(path):
    return {"sha256": safe_io.sha256_file(path), "size": path.stat().st_size}


@pytest.mark.parametrize("forged", ["model id", "one file more", "another file", "version"])
def test_metadata_that_names_files_outside_is_no_metadata(registry, make_draft, victim, forged):
    metadata = registry.register(**make_draft())
    files = {name: {"sha256": each.sha256, "size": each.size} for name, each in metadata.files.items()}
    model, rest = next(iter(files)), dict(list(files.items())[1:])
    outside = {f"{OUTSIDE}.pth": info(victim)}
    registry = forge(registry, **{
        "model id": {"model_id": OUTSIDE, "files": rest | outside},
        "one file more": {"files": files | outside},
        "another file": {"files": {model: files[model]} | outside},
        "version": {"version": f"1.0.0/{OUTSIDE}"},
    }[forged])  # fmt: skip
    changes = (
        lambda: registry.load("sac@1.0.0"),
        lambda: registry.archive(["sac@1.0.0"]),
        lambda: registry.purge(["sac@1.0.0"], purge_after_days=0),
        lambda: registry.set_alias("sac@1.0.0", "champion"),
        lambda: registry.pin("sac@1.0.0", role="agent"),
        lambda: registry.repair(),
        lambda: registry.prune(PrunePolicy(keep_best=0, keep_last=0, min_age_days=0)),
    )
    for change in changes:
        with pytest.raises(RegistryError):
            change()
    assert registry.list() == ()
    registry.collect_garbage(older_than_hours=0)
    registry.rebuild()
    assert not is_clean(verify(registry.root, deep=True))


def test_a_parent_is_a_model_of_the_registry(registry, make_draft, victim):
    registry.register(**make_draft())
    pinned = registry.pin("sac@1", role="agent")
    parent = {name: getattr(pinned, name) for name in pinned.__slots__}
    for name in (OUTSIDE, str(victim), "sac/../../victim.pth"):
        with pytest.raises(RegistryError):
            registry.register(**make_draft(model_type="hybrid", parents=[type(pinned)(**parent | {"id": name})]))
    registry = forge(registry, parents=[parent | {"id": OUTSIDE}])
    assert [link.parent for link in registry.lineage("sac@1")["up"]] == [OUTSIDE]
    assert ("error", "parent") in {(finding.severity, finding.kind) for finding in verify(registry.root)}


@pytest.mark.parametrize("reference", [OUTSIDE, f"sac@{OUTSIDE}", "sac/../../victim.pth", "sac@1.0.0/../../../victim"])
def test_no_argument_leads_outside(registry, make_draft, victim, reference):
    registry.register(**make_draft())
    for call in (
        lambda: registry.load(reference),
        lambda: registry.load(str(victim)),
        lambda: registry.archive([reference]),
        lambda: registry.restore([reference]),
        lambda: registry.purge([reference], purge_after_days=0),
        lambda: registry.set_alias(reference, "champion"),
        lambda: registry.set_alias("sac@1", OUTSIDE),
        lambda: registry.remove_alias(OUTSIDE, "champion"),
        lambda: registry.list(OUTSIDE),
        lambda: registry.register(**make_draft(model_type=OUTSIDE)),
        lambda: registry.register(**make_draft(run_id=OUTSIDE)),
        lambda: registry.register(**make_draft(metric_token=(OUTSIDE, 1.0))),
    ):
        with pytest.raises(RegistryError):
            call()
    assert len(registry.list()) == 1


@pytest.mark.parametrize("place", ["sac", "archived", "archived/sac"])
def test_a_folder_that_is_a_link_is_not_followed(registry, make_draft, tmp_path, place):
    model = registry.register(**make_draft()).model_id
    elsewhere, path = tmp_path / "elsewhere", registry.root / place
    if path.exists():
        path.rename(elsewhere)
    else:
        path.parent.mkdir(exist_ok=True)
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    before = {each: each.read_bytes() for each in elsewhere.rglob("*") if each.is_file()}
    for change in (
        lambda: registry.archive([model]),
        lambda: registry.register(**make_draft(seed=1)),
        lambda: ModelRegistry(registry.root).list(),
    ):
        with pytest.raises(RegistryError, match="is a symbolic link"):
            change()
    with contextlib.suppress(RegistryError):
        registry.collect_garbage(older_than_hours=0)
    assert {each: each.read_bytes() for each in elsewhere.rglob("*") if each.is_file()} == before
    assert not is_clean(verify(registry.root))
