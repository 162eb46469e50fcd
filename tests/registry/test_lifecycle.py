"""Archive, restore, purge, prune and repair: bit for bit, nothing a live model depends on, no dangling name."""

import dataclasses
import datetime
import os
import shutil

import pytest

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry import lifecycle, snapshot
from trade_agent.registry.events import append_event
from trade_agent.registry.retention import PrunePolicy, prune_plan
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, Objective, verify


@pytest.fixture
def family(registry, make_draft):
    """A forecaster, an agent on it and a hybrid of both, by their model types."""
    forecaster = registry.register(**make_draft(seed=1, model_type="cnn_lstm"))
    agent = registry.register(**make_draft(seed=2, parents=[registry.pin(forecaster.model_id, role="forecaster")]))
    parents = [
        registry.pin(forecaster.model_id, role="forecaster"),
        registry.pin(agent.model_id, role="agent"),
    ]
    hybrid = registry.register(**make_draft(seed=3, model_type="hybrid", parents=parents))
    return {"forecaster": forecaster.model_id, "agent": agent.model_id, "hybrid": hybrid.model_id}


def files_of(registry):
    """Digests of all data and metadata files by type and name, active or archived."""
    paths = [*registry.root.glob("*/*_v1*"), *registry.root.glob("archived/*/*_v1*")]
    return {
        (path.parent.name, path.name): safe_io.sha256_file(path)
        for path in paths
        if path.parent.name != "preprocessors"
    }


def states(registry):
    return {record.id: record.state for record in registry.list(include_archived=True)}


def test_archive_and_restore_leave_every_byte_and_the_id(registry, family):
    before = files_of(registry)
    assert registry.archive([family["hybrid"]]) == (family["hybrid"],)
    assert family["hybrid"] not in [record.id for record in registry.list()]
    assert list((registry.root / "archived/hybrid").iterdir())
    assert files_of(registry) == before
    with pytest.raises(RegistryError, match="is archived"):
        registry.load("hybrid@1.0.0")
    assert registry.load("hybrid@1.0.0", include_archived=True).metadata.model_id == family["hybrid"]
    assert verify(registry.root) == []

    assert registry.restore(["hybrid@1.0.0"]) == (family["hybrid"],)
    assert files_of(registry) == before
    assert not list((registry.root / "archived/hybrid").iterdir())
    assert registry.load(family["hybrid"]).metadata.model_id == family["hybrid"]
    assert verify(registry.root) == []


def test_what_is_archived_or_active_already_stays_so_without_an_event(registry, family):
    hybrid = family["hybrid"]
    registry.restore([hybrid])
    assert registry.history() == ()
    registry.archive([hybrid])
    assert registry.archive([hybrid]) == (hybrid,)
    assert [event["type"] for event in registry.history()] == ["archive"]
    registry.restore([hybrid])
    assert registry.restore([hybrid]) == (hybrid,)
    assert [event["type"] for event in registry.history()] == ["archive", "restore"]
    assert states(registry)[hybrid] == "active"


def test_a_number_is_not_used_again_while_its_model_is_archived_or_purged(registry, make_draft):
    first = registry.register(**make_draft(seed=1))
    registry.archive([first.model_id])
    registry.purge([first.model_id], purge_after_days=0)
    assert registry.register(**make_draft(seed=2)).version == "1.0.1"


def test_what_others_were_built_on_is_archived_with_them_or_not_at_all(registry, family):
    with pytest.raises(RegistryError, match="has models that were built on it") as error:
        registry.archive([family["forecaster"]])
    assert family["agent"] in error.value.message
    assert family["hybrid"] in error.value.message
    assert set(states(registry).values()) == {"active"}
    assert registry.archive([family["agent"]], cascade=True) == (family["hybrid"], family["agent"])
    assert states(registry) == {
        family["forecaster"]: "active",
        family["agent"]: "archived",
        family["hybrid"]: "archived",
    }
    with pytest.raises(RegistryError, match="was built on models that are not active"):
        registry.restore([family["hybrid"]])
    assert registry.restore([family["hybrid"]], cascade=True) == (family["agent"], family["hybrid"])
    assert set(states(registry).values()) == {"active"}
    assert verify(registry.root) == []


def test_a_model_with_an_alias_is_not_archived_and_an_archived_one_gets_none(registry, make_draft):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.set_alias(model, "champion")
    with pytest.raises(RegistryError, match="is sac@champion"):
        registry.archive([model])
    registry.remove_alias("sac", "champion")
    registry.archive([model])
    with pytest.raises(RegistryError, match="is archived"):
        registry.set_alias(model, "champion")
    # Two processes at once: the event that comes second has no effect, whichever it is.
    append_event(registry.layout, "alias", model, model_type="sac", alias="champion")
    assert registry.view().aliases == {}
    registry.restore([model])
    registry.set_alias(model, "champion")
    append_event(registry.layout, "archive", model)
    assert states(registry) == {model: "active"}
    assert registry.resolve("sac@champion") == model
    assert is_clean(verify(registry.root))


def test_purge_keeps_the_metadata_and_waits_for_the_days(registry, family):
    registry.archive([family["hybrid"]])
    with pytest.raises(RegistryError, match="was archived less than 30 days ago"):
        registry.purge([family["hybrid"]], purge_after_days=30)
    with pytest.raises(RegistryError, match="is active"):
        registry.purge([family["agent"]], purge_after_days=0)
    assert registry.purge([family["hybrid"]], purge_after_days=0) == (family["hybrid"],)
    assert [path.name for path in (registry.root / "archived/hybrid").iterdir()] == ["metadata_v1.0.0.json"]
    assert registry.get(family["hybrid"], include_archived=True).seed == 3
    assert registry.lineage(family["forecaster"])["down"][-1].child == family["hybrid"]
    with pytest.raises(RegistryError, match="was purged"):
        registry.load(family["hybrid"], include_archived=True)
    for change in (registry.restore, registry.archive):
        with pytest.raises(RegistryError, match="was purged"):
            change([family["hybrid"]])
    assert verify(registry.root) == []


def test_a_purge_that_comes_after_a_restore_has_no_effect(registry, make_draft):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.archive([model])
    registry.restore([model])
    append_event(registry.layout, "purge", model)
    assert states(registry) == {model: "active"}
    registry.archive([model])
    registry.purge([model], purge_after_days=0)
    append_event(registry.layout, "restore", model)
    assert states(registry) == {model: "purged"}


def test_a_parent_is_purged_after_its_archived_children(registry, family):
    registry.archive([family["forecaster"]], cascade=True)
    with pytest.raises(RegistryError, match="has models that were built on it"):
        registry.purge([family["agent"]], purge_after_days=0)
    assert registry.purge([family["agent"]], purge_after_days=0, cascade=True) == (family["hybrid"], family["agent"])
    assert verify(registry.root) == []


@pytest.mark.parametrize("archived", [True, False])
@pytest.mark.parametrize("moved", range(4))
def test_a_move_that_was_cut_off_is_named_read_through_and_repaired(registry, make_draft, monkeypatch, archived, moved):
    model = registry.register(**make_draft(seed=1)).model_id
    if not archived:
        registry.archive([model])
    before = files_of(registry)
    real, count = os.rename, 0

    def stop(source, target):
        nonlocal count
        count += 1
        if count > moved:
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        (registry.archive if archived else registry.restore)([model])
    monkeypatch.undo()
    wanted = "archived" if archived else "active"
    assert states(registry) == {model: wanted}
    assert registry.load(model, include_archived=True).metadata.model_id == model
    findings = verify(registry.root)
    assert is_clean(findings)
    assert {finding.kind for finding in findings} <= {"unfinished", "snapshot"}
    registry.repair()
    assert files_of(registry) == before
    assert states(registry) == {model: wanted}
    assert not any(finding.kind == "unfinished" for finding in verify(registry.root))
    assert registry.repair() == ()


def test_a_child_that_appears_while_its_parent_is_archived_keeps_it(registry, make_draft, monkeypatch):
    parent = registry.register(**make_draft(seed=1, model_type="cnn_lstm")).model_id
    child = make_draft(seed=2, parents=[registry.pin(parent, role="forecaster")])
    real = lifecycle.append_event
    born = []

    def event_after_a_birth(layout, kind, model_id):
        if kind == "archive" and not born:
            born.append(registry.register(**child).model_id)
        return real(layout, kind, model_id)

    monkeypatch.setattr(lifecycle, "append_event", event_after_a_birth)
    with pytest.raises(RegistryError, match="was built on .* meanwhile"):
        registry.archive([parent])
    assert states(registry) == {parent: "active", born[0]: "active"}
    assert verify(registry.root) == []


def test_a_child_that_appears_after_its_parent_was_archived_is_archived_too(registry, make_draft, monkeypatch):
    parent = registry.register(**make_draft(seed=1, model_type="cnn_lstm")).model_id
    child = make_draft(seed=2, parents=[registry.pin(parent, role="forecaster")])
    real = registry._check_parent

    def check_and_lose(pinned):
        real(pinned)
        registry.archive([parent])

    monkeypatch.setattr(registry, "_check_parent", check_and_lose)
    with pytest.raises(RegistryError, match="is archived too"):
        registry.register(**child)
    assert set(states(registry).values()) == {"archived"}
    monkeypatch.undo()
    (born,) = [key for key in states(registry) if key != parent]
    assert registry.restore([born], cascade=True) == (parent, born)
    assert verify(registry.root) == []


def test_an_archiver_that_died_before_it_looked_at_the_children_gives_way(registry, family):
    append_event(registry.layout, "archive", family["forecaster"])
    assert ("error", "parent") in {(finding.severity, finding.kind) for finding in verify(registry.root)}
    with pytest.raises(RegistryError, match="is active"):
        registry.purge([family["forecaster"]], purge_after_days=0)
    (line,) = registry.repair()
    assert line.startswith(f"{family['forecaster']}: active again, as {family['agent']}")
    assert set(states(registry).values()) == {"active"}
    assert verify(registry.root) == []


def test_a_child_whose_writer_died_before_it_looked_at_its_parents_gets_them_back(
    registry, family, make_draft, monkeypatch
):
    orphan = make_draft(seed=9, model_type="hybrid", parents=[registry.pin(family["agent"], role="agent")])
    before = registry.list()
    registry.archive([family["forecaster"]], cascade=True)
    # Its parents were active when it looked before its commit; after that it died.
    monkeypatch.setattr(registry, "_check_parent", lambda parent: None)
    monkeypatch.setattr(lifecycle, "confirm_parents", lambda layout, identifier: None)
    born = registry.register(**orphan).model_id
    monkeypatch.undo()
    assert ("error", "parent") in {(finding.severity, finding.kind) for finding in verify(registry.root)}
    with pytest.raises(RegistryError, match="is active"):
        registry.purge([family["forecaster"]], purge_after_days=0, cascade=True)
    done = registry.repair()
    assert [line.split(":")[0] for line in done[:2]] == [family["forecaster"], family["agent"]]
    assert states(registry) == {each.id: "active" for each in before} | {family["hybrid"]: "archived", born: "active"}
    assert verify(registry.root) == []


def test_repair_goes_on_behind_a_model_that_it_cannot_mend(registry, make_draft):
    first, second = (registry.register(**make_draft(seed=seed)).model_id for seed in (1, 2))
    append_event(registry.layout, "archive", first)
    append_event(registry.layout, "archive", second)
    (registry.root / "archived/sac").mkdir()
    (registry.root / "archived/sac/config_v1.0.0.json").write_text("another file")
    with pytest.raises(RegistryError, match="config_v1.0.0.json both exist"):
        registry.repair()
    assert (registry.root / "archived/sac/metadata_v1.0.1.json").exists()
    assert registry.load(second, include_archived=True).metadata.model_id == second


def test_a_purge_that_was_cut_off_is_named_and_goes_on_when_it_is_repeated(registry, make_draft):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.archive([model])
    append_event(registry.layout, "purge", model)
    (finding,) = (finding for finding in verify(registry.root) if finding.kind != "snapshot")
    assert (finding.severity, finding.kind) == ("note", "unfinished")
    assert "purge it again" in finding.message
    assert registry.repair() == ()
    assert registry.purge([model], purge_after_days=0) == (model,)
    assert len(files_of(registry)) == 1
    assert verify(registry.root) == []


def test_a_damaged_event_hides_no_model_and_stops_changes_until_it_is_back(registry, make_draft):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.set_alias(model, "champion")
    registry.note(model, "looks good")
    path = registry.root / ".registry/events/00000001.json"
    kept = path.read_bytes()
    registry.layout.snapshot.unlink()
    path.chmod(0o644)
    path.write_bytes(kept[:20])
    registry = ModelRegistry(registry.root, durability="relaxed")  # one that has not seen the event
    assert registry.load(model).metadata.model_id == model
    for change in (lambda: registry.archive([model]), lambda: registry.note(model, "again"), registry.repair):
        with pytest.raises(RegistryError, match="so nothing can be changed"):
            change()
    assert registry.register(**make_draft(seed=2)).version == "1.0.1"
    assert ("error", "event") in {(finding.severity, finding.kind) for finding in verify(registry.root)}
    path.write_bytes(kept)
    assert registry.resolve("sac@champion") == model
    registry.remove_alias("sac", "champion")
    assert registry.archive([model]) == (model,)
    assert verify(registry.root) == []


def test_a_damaged_file_is_told_once_with_what_helps(registry, make_draft, caplog):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.note(model, "checked")
    registry.register(**make_draft(seed=2))
    damaged = (registry.root / ".registry/events/00000001.json", registry.root / "sac/metadata_v1.0.1.json")
    for path in damaged:
        path.unlink()
        path.write_bytes(b"{}")
    registry.layout.snapshot.unlink()
    for _ in range(3):
        ModelRegistry(registry.root).list()
        verify(registry.root)
    assert len(caplog.messages) == 2
    for path, remedy in zip(
        damaged, ("move it away and give it up: trade-agent registry repair", "train"), strict=True
    ):
        (said,) = (message for message in caplog.messages if path.name in message)
        assert remedy in said
    claim = registry.layout.claims("sac") / "v1.0.0"
    claim.unlink()
    claim.write_bytes(b"{}")
    (said,) = (finding.message for finding in verify(registry.root) if finding.path.endswith("/v1.0.0"))
    assert said.endswith("have it made again: trade-agent registry repair")


def test_a_damaged_restore_does_not_hide_the_model_that_it_brought_back(registry, make_draft):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.archive([model])
    registry.restore([model])
    path = registry.root / ".registry/events/00000002.json"
    path.chmod(0o644)
    path.write_bytes(b"")
    registry.layout.snapshot.unlink()
    registry = ModelRegistry(registry.root, durability="relaxed")  # one that has not seen it whole
    assert [record.id for record in registry.list()] == [model]
    assert registry.load(model).metadata.model_id == model
    assert [event["type"] for event in registry.history(model)] == ["archive", "damaged"]
    # Moved away, it is forgotten: the model is archived, as the events that are left say.
    path.rename(registry.root.parent / path.name)
    assert registry.list() == ()
    assert registry.restore([model]) == (model,)


def test_an_event_that_is_gone_is_missed_and_forgotten(registry, make_draft):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.set_alias(model, "champion")
    registry.rebuild()
    assert registry.resolve("sac@champion") == model
    (registry.root / ".registry/events/00000001.json").unlink()
    assert ("error", "event") in {(finding.severity, finding.kind) for finding in verify(registry.root)}
    for reader in (registry, ModelRegistry(registry.root)):
        with pytest.raises(RegistryError, match="there is no model 'sac@champion'"):
            reader.resolve("sac@champion")
    registry.rebuild()
    assert verify(registry.root) == []


def test_the_number_of_a_lost_event_is_given_anew_and_nobody_believes_the_old_one(registry, make_draft):
    """Three readers of the time before: this process, another one, and registry.json."""
    first, second = (registry.register(**make_draft(seed=seed)).model_id for seed in (1, 2))
    registry.set_alias(first, "champion")
    other = ModelRegistry(registry.root, durability="relaxed")
    assert other.resolve("sac@champion") == first
    (registry.root / ".registry/events/00000001.json").unlink()
    registry.set_alias(second, "challenger")
    for reader in (registry, other, ModelRegistry(registry.root)):
        assert reader.resolve("sac@challenger") == second
        with pytest.raises(RegistryError, match="there is no model 'sac@champion'"):
            reader.resolve("sac@champion")


@pytest.mark.parametrize("lost", ["damaged", "missing"])
def test_nothing_changes_while_an_event_is_lost_also_where_the_overview_has_seen_it(registry, make_draft, lost):
    model = registry.register(**make_draft(seed=1)).model_id
    registry.set_alias(model, "champion")
    registry.note(model, "checked")
    path = registry.root / ".registry/events/00000001.json"
    path.unlink()
    if lost == "damaged":
        path.write_bytes(b"{}")
    assert ("error", "event") in {(finding.severity, finding.kind) for finding in verify(registry.root)}
    registry = ModelRegistry(registry.root, durability="relaxed")
    with pytest.raises(RegistryError, match="so nothing can be changed"):
        registry.note(model, "again")
    assert len(registry.history()) == 2 - (lost == "missing")
    path.unlink(missing_ok=True)
    assert registry.repair() == ("event 1: given up, it is missing",)
    registry.note(model, "again")
    assert [event["type"] for event in registry.history()] == ["lost", "note", "note"]
    registry.rebuild()
    assert is_clean(verify(registry.root))


def test_the_best_of_a_search_stay_whatever_it_was_for(registry, make_draft):
    for seed in range(6):
        objective = Objective(name="sharpe", value=float(seed), direction="max")
        registry.register(**make_draft(seed=seed, study="first", objective=objective))
    for seed in range(6, 9):
        objective = Objective(name="sortino", value=float(seed), direction="max")
        registry.register(**make_draft(seed=seed, objective=objective))
    plan = registry.prune_plan(PrunePolicy(keep_best=2, keep_last=1, min_age_days=0))
    assert {registry.get(item.id).seed for item in plan} == {0, 1, 2, 3, 6}


def test_metadata_that_takes_the_id_of_another_model_is_refused(registry, make_draft):
    model = registry.register(**make_draft(seed=1))
    forged = dataclasses.replace(model, model_type="td3", version="9.0.0").to_json()
    (registry.root / "td3/metadata_v9.0.0.json").write_bytes(forged)
    fresh = ModelRegistry(registry.root, durability="relaxed")
    assert fresh.resolve("sac@latest") == model.model_id
    assert [record.type for record in fresh.list()] == ["sac"]
    assert ("error", "metadata") in {(finding.severity, finding.kind) for finding in verify(registry.root)}


def test_past_states_are_those_that_were_seen_then(registry, make_draft):
    first, second = (registry.register(**make_draft(seed=seed)).model_id for seed in (1, 2))
    seen = {}

    def look():
        number = registry.view().last_event
        seen[number] = (states(registry), dict(registry.view().aliases))

    for change in (
        lambda: registry.set_alias(first, "champion"),
        lambda: registry.archive([second]),
        lambda: registry.restore([second]),
        lambda: registry.set_alias(second, "champion"),
        lambda: registry.archive([first]),
        lambda: registry.purge([first], purge_after_days=0),
    ):
        change()
        look()
    assert len(seen) == 6
    registry.register(**make_draft(seed=3))  # was not there then
    for number, (then, aliases) in seen.items():
        view = registry.view(until=number)
        assert {key: record.state for key, record in view.records.items()} == then
        assert view.aliases == aliases
    assert [event["type"] for event in registry.history(first)] == ["alias", "archive", "purge"]
    registry.rebuild()
    assert verify(registry.root) == []


def test_a_snapshot_that_was_kept_up_equals_a_rebuilt_one(registry, family, make_draft, monkeypatch):
    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", -1)  # it is always old
    registry.set_alias(family["hybrid"], "champion")
    other = registry.register(**make_draft(seed=9)).model_id
    registry.archive([other])
    registry.note(other, "of no use")
    kept = registry.layout.snapshot.read_bytes()
    registry.rebuild()
    assert registry.layout.snapshot.read_bytes() == kept


def test_the_plan_of_prune_is_what_it_does(registry, family, make_draft):
    policy = PrunePolicy(keep_best=1, keep_last=1, min_age_days=0)
    old = [registry.register(**make_draft(seed=seed)).model_id for seed in (11, 12, 13)]
    registry.set_alias(old[0], "champion")
    plan = registry.prune_plan(policy)
    # The agent is the hybrid's parent, the first of `old` has an alias, the last is the best (of equals) and the last.
    assert [item.id for item in plan] == [old[1]]
    assert plan[0].size == sum(info.size for info in registry.get(old[1]).files.values())
    assert "number 2 by sharpe, number 2 from the last" in plan[0].reason
    before = states(registry)
    assert registry.prune(policy) == (old[1],)
    assert states(registry) == before | {old[1]: "archived"}
    assert registry.prune_plan(policy) == []


def test_what_is_young_stays(registry, make_draft):
    for seed in range(4):
        registry.register(**make_draft(seed=seed))
    policy = PrunePolicy(keep_best=1, keep_last=1, min_age_days=2)
    assert registry.prune_plan(policy) == []
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2, minutes=1)
    assert len(prune_plan(registry.view(), policy, size=lambda record: 1, now=later)) == 3


def test_a_lost_parent_is_named(registry, family):
    shutil.rmtree(registry.root / "cnn_lstm")
    kinds = {finding.kind for finding in verify(registry.root)}
    assert {"parent", "missing"} <= kinds
