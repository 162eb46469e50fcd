"""Left-overs of writers: a number is closed before anything is removed, and nothing of a live model ever is."""

import os

import pytest

from trade_agent.errors import RegistryError
from trade_agent.registry import publish
from trade_agent.training.model_registry import ModelRegistry, verify


def data_files(registry):
    return sorted(path.name for path in (registry.root / "sac").iterdir() if path.is_file())


def die_at_the_commit(registry, draft):
    """A process that is killed between its data files and its metadata."""

    def link_or_die(source, target):
        if target.name.startswith("metadata"):
            os.kill(os.getpid(), 9)
        return real(source, target)

    real = publish.link_new
    publish.link_new = link_or_die  # in the forked process only
    registry.register(**draft)
    yield "never reached"


@pytest.fixture
def dead_writer(registry, make_draft, fork):
    registry.register(**make_draft(seed=1))
    lines, status = fork(die_at_the_commit, registry, make_draft(seed=2)).result()
    assert (lines, status) == ([], -9)
    assert "config_v1.0.1.json" in data_files(registry)


@pytest.mark.usefixtures("dead_writer")
def test_what_a_dead_writer_left_is_closed_and_removed(registry, make_draft):
    whole = [name for name in data_files(registry) if "v1.0.0" in name]
    removed = registry.collect_garbage(older_than_hours=24)
    assert {path.split("/")[0] for path in removed} == {"sac@1.0.1", "sac", "temp"}
    assert data_files(registry) == sorted([*whole, "metadata_v1.0.1.json"])
    assert list((registry.root / "temp").iterdir()) == []
    assert registry.load("sac@latest").metadata.seed == 1
    assert registry.register(**make_draft(seed=3)).version == "1.0.2"
    assert verify(registry.root) == []
    assert registry.collect_garbage(older_than_hours=24) == ()


def test_what_a_writer_on_another_host_left_is_told_by_its_age(registry):
    registry.layout.prepare()
    elsewhere = registry.layout.temp / f"elsewhere-{os.getpid()}-{'0' * 12}"
    elsewhere.mkdir()
    assert registry.collect_garbage(older_than_hours=1) == ()
    assert registry.collect_garbage(older_than_hours=0) == (f"temp/{elsewhere.name}",)


@pytest.mark.parametrize("archived", [False, True])
def test_a_model_whose_metadata_is_lost_is_never_taken_for_a_dead_registration(registry, make_draft, fork, archived):
    """Neither closed nor removed, by anybody; repair brings it back, bit for bit, with its alias."""
    draft = make_draft(seed=1)
    [identifier], _ = fork(lambda: [registry.register(**draft).model_id]).result()  # the writer is gone
    if archived:
        registry.archive([identifier])
    else:
        registry.set_alias(identifier, "champion")
    path = registry.layout.locate("sac", "metadata_v1.0.0.json")
    content = path.read_bytes()
    path.unlink()
    fresh = ModelRegistry(registry.root, durability="relaxed")
    assert ("error", "missing") in {(finding.severity, finding.kind) for finding in verify(registry.root)}
    assert fresh.collect_garbage(older_than_hours=0) == ()
    with pytest.raises(RegistryError, match="trade-agent registry repair"):
        fresh.register(**draft)
    assert fresh.repair()[0] == "sac@1.0.0: its metadata is back"
    assert fresh.layout.locate("sac", "metadata_v1.0.0.json").read_bytes() == content
    assert fresh.load(identifier if archived else "sac@champion", include_archived=archived).metadata.seed == 1
    assert verify(registry.root) == []


def test_what_is_not_the_registrys_own_is_left_alone(registry, make_draft, tmp_path):
    registry.register(**make_draft())
    (registry.layout.temp / "thesis").mkdir()
    assert registry.collect_garbage(older_than_hours=0) == ()
    assert [(each.kind, each.path) for each in verify(registry.root)] == [("unknown", "temp/thesis")]
    for name in ("temp", ".registry", "sac/.claims"):
        (registry.root / name).rename(tmp_path / "elsewhere")
        (registry.root / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RegistryError, match="symbolic link"):
            ModelRegistry(registry.root).collect_garbage(older_than_hours=0)
        (registry.root / name).unlink()
        (tmp_path / "elsewhere").rename(registry.root / name)


@pytest.mark.usefixtures("dead_writer")
def test_repair_closes_the_number_and_removes_nothing(registry, make_draft):
    before = data_files(registry)
    assert registry.repair() == ("sac@1.0.1: closed, its writer is gone",)
    assert data_files(registry) == sorted([*before, "metadata_v1.0.1.json"])
    assert registry.repair() == ()
    # The run may be started again: what it left is closed, so it gets the next number.
    assert registry.register(**make_draft(seed=2)).version == "1.0.2"


def test_a_writer_at_work_is_left_alone(registry, make_draft, monkeypatch):
    collected = []

    def collect_first(source, target):
        if target.name.startswith("metadata") and not collected:
            collected.append((registry.collect_garbage(older_than_hours=24), registry.repair()))
        return real(source, target)

    real = publish.link_new
    monkeypatch.setattr(publish, "link_new", collect_first)
    metadata = registry.register(**make_draft())
    assert collected == [((), ())]
    assert registry.load(metadata.model_id).metadata == metadata
    assert verify(registry.root) == []


def test_a_writer_that_is_given_up_is_turned_away_when_it_wakes_up(registry, make_draft, monkeypatch):
    def give_up_first(source, target):
        if target.name == "metadata_v1.0.0.json" and "tombstone" not in source.name:
            registry.collect_garbage(older_than_hours=0)
            assert registry.list() == ()
        return real(source, target)

    real = publish.link_new
    monkeypatch.setattr(publish, "link_new", give_up_first)
    with pytest.raises(RegistryError, match="was fenced"):
        registry.register(**make_draft())
    monkeypatch.undo()
    assert registry.list() == ()
    registry.collect_garbage(older_than_hours=0)
    assert data_files(registry) == ["metadata_v1.0.0.json"]
    assert registry.register(**make_draft()).version == "1.0.1"
    assert verify(registry.root) == []


def test_half_written_overviews_are_removed_when_they_are_old(registry, make_draft):
    registry.register(**make_draft())
    stray = registry.root / f".registry.json.{'0' * 32}"
    stray.write_bytes(b"{")
    (finding,) = verify(registry.root)
    assert (finding.severity, finding.path) == ("note", stray.name)
    assert registry.collect_garbage(older_than_hours=1) == ()
    assert registry.collect_garbage(older_than_hours=0) == (stray.name,)
    assert verify(registry.root) == []
