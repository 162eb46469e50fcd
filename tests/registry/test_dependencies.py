"""Random families of models: what others live on stays, prune does what it planned, and the past can be looked at."""

import contextlib
import datetime
import itertools
import random
import tempfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent.errors import RegistryError
from trade_agent.registry.metadata import Objective
from trade_agent.registry.naming import MODEL_TYPES
from trade_agent.registry.retention import PrunePolicy, prune_plan
from trade_agent.registry.snapshot import ModelRecord, View
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def new_registry(tmp_path):
    numbers = itertools.count()
    return lambda: ModelRegistry(tmp_path / f"models-{next(numbers)}", durability="relaxed")


def grow(registry, make_draft, rng, size):
    """Register models on random earlier ones; returns the parents of each by id."""
    parents = {}
    for seed in range(size):
        chosen = rng.sample(sorted(parents), k=min(len(parents), rng.choice([0, 1, 1, 2, 3])))
        pinned = [registry.pin(each, role="agent") for each in chosen]
        draft = make_draft(seed=seed, model_type=rng.choice(MODEL_TYPES), parents=pinned)
        draft["objective"] = Objective(name="sharpe", value=rng.choice([None, rng.uniform(-1, 1)]), direction="max")
        parents[registry.register(**draft).model_id] = set(chosen)
    return parents


def closure(edges, start):
    """All that can be reached from ``start``, itself included."""
    found = {start}
    while True:
        more = {target for source in found for target in edges[source]} - found
        if not more:
            return found
        found |= more


def turned(edges):
    return {each: {other for other, targets in edges.items() if each in targets} for each in edges}


def active(registry):
    return {record.id for record in registry.list()}


def check_family(registry, make_draft, rng):
    parents = grow(registry, make_draft, rng, size=rng.randint(3, 7))
    children = turned(parents)
    everything = set(parents)
    for identifier in parents:
        if children[identifier]:
            with pytest.raises(RegistryError, match="has models that were built on it"):
                registry.archive([identifier])
    assert active(registry) == everything

    doomed = rng.choice(sorted(parents))
    gone = closure(children, doomed)
    assert set(registry.archive([doomed], cascade=True)) == gone
    assert active(registry) == everything - gone
    back = rng.choice(sorted(gone))
    for identifier in sorted(gone):
        if children[identifier]:
            with pytest.raises(RegistryError, match="has models that were built on it"):
                registry.purge([identifier], purge_after_days=0)
    needed = closure(parents, back) & gone
    assert set(registry.restore([back], cascade=True)) == needed
    assert active(registry) == everything - gone | needed
    purged = gone - needed
    if purged:
        assert set(registry.purge(sorted(purged), purge_after_days=0)) == purged
    assert active(registry) == everything - purged
    for identifier in sorted(everything - purged):
        registry.load(identifier)
    assert is_clean(verify(registry.root))


@pytest.mark.parametrize("seed", range(5))
def test_a_parent_with_live_children_stays_and_cascade_takes_exactly_those(new_registry, make_draft, seed):
    check_family(new_registry(), make_draft, random.Random(seed))


@pytest.mark.slow
def test_a_thousand_random_families(make_draft):
    for seed in range(1000):
        with tempfile.TemporaryDirectory() as folder:
            check_family(ModelRegistry(folder, durability="relaxed"), make_draft, random.Random(1000 + seed))


@pytest.mark.parametrize("seed", range(3))
def test_no_number_is_given_twice_whatever_became_of_its_model(new_registry, make_draft, seed):
    registry, rng, numbers = new_registry(), random.Random(seed), []
    for step in range(25):
        draft = make_draft(
            seed=step, contract={"window": rng.choice([8, 16])}, recipe={"gamma": rng.choice([0.9, 0.99])}
        )
        numbers.append(registry.register(**draft, bump=rng.choice([None, None, "major"])).version)
        model = rng.choice([record.id for record in registry.list()])
        if rng.random() < 0.6:
            registry.archive([model])
            if rng.random() < 0.7:
                registry.purge([model], purge_after_days=0)
        if rng.random() < 0.2:  # nothing is remembered by the process or the overview
            registry.layout.snapshot.unlink(missing_ok=True)
            registry = ModelRegistry(registry.root, durability="relaxed")
    assert len(set(numbers)) == len(numbers)
    assert len(registry.list(include_archived=True)) == len(numbers)
    assert is_clean(verify(registry.root))


# ---------------------------------------------------------------- prune


@st.composite
def views(draw):
    """A view of up to 12 models, and each one's age in days."""
    records: dict[str, ModelRecord] = {}
    for number in range(draw(st.integers(1, 12))):
        model_type = draw(st.sampled_from(MODEL_TYPES[:3]))
        identifier = f"{model_type}_v1.0.{number}"
        age = datetime.timedelta(days=draw(st.integers(0, 20)))
        value = draw(st.one_of(st.none(), st.integers(-3, 3).map(float)))
        records[identifier] = ModelRecord(
            id=identifier, type=model_type, version=f"1.0.{number}", grade="B", state="active",
            created=(NOW - age).isoformat(), objective=Objective(name="sharpe", value=value, direction="max"),
            study=draw(st.sampled_from(["", "", "first", "second"])),
            parents=draw(st.lists(st.sampled_from(sorted(records)), unique=True, max_size=2)) if records else [],
            file="", file_sha256="", weights_sha256="", metadata_sha256="",
        )  # fmt: skip
    named = draw(st.lists(st.sampled_from(sorted(records)), max_size=2))
    return View(records, {f"{records[key].type}@a{place}": key for place, key in enumerate(named)})


@settings(deadline=None, max_examples=200)
@given(views(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 20))
def test_prune_takes_what_no_rule_keeps_and_nothing_else(view, keep_best, keep_last, min_age_days):
    policy = PrunePolicy(keep_best=keep_best, keep_last=keep_last, min_age_days=min_age_days)
    plan = prune_plan(view, policy, size=lambda record: 1, now=NOW)
    kept = set(view.aliases.values())
    for model_type in MODEL_TYPES:
        line = [record for record in view.records.values() if record.type == model_type]  # by ascending version
        kept |= {record.id for record in line[max(len(line) - keep_last, 0) :]}
        valued = [record for record in line if record.objective.value is not None]
        valued.sort(key=lambda record: (record.objective.value, record.number), reverse=True)
        for study in ("first", "second", None):
            of_study = [record for record in valued if study in (None, record.study)]
            kept |= {record.id for record in of_study[:keep_best]}
    young = NOW - datetime.timedelta(days=min_age_days)
    kept |= {key for key, record in view.records.items() if datetime.datetime.fromisoformat(record.created) > young}
    parents = {key: set(record.parents) for key, record in view.records.items()}
    kept = {needed for key in kept for needed in closure(parents, key)}
    assert {item.id for item in plan} == set(view.records) - kept
    for item in plan:
        assert set(item.dependents) == turned(parents)[item.id]
        assert set(item.dependents) <= {other.id for other in plan}


@pytest.mark.parametrize("seed", range(3))
def test_what_prune_planned_is_what_it_does(new_registry, make_draft, seed):
    registry, rng = new_registry(), random.Random(seed)
    everything = set(grow(registry, make_draft, rng, size=10))
    registry.set_alias(rng.choice(sorted(everything)), "champion")
    policy = PrunePolicy(keep_best=rng.randint(0, 1), keep_last=rng.randint(0, 1), min_age_days=0)
    plan = {item.id for item in registry.prune_plan(policy)}
    assert set(registry.prune(policy)) == plan
    assert active(registry) == everything - plan
    assert registry.prune_plan(policy) == []
    assert is_clean(verify(registry.root))


# ---------------------------------------------------------------- the past


@pytest.mark.parametrize("seed", range(3))
def test_every_past_state_is_the_one_that_was_seen_and_no_alias_dangles(new_registry, make_draft, seed):
    registry, rng = new_registry(), random.Random(seed)
    models = sorted(grow(registry, make_draft, rng, size=6))
    seen = {}
    for _ in range(60):
        model = rng.choice(models)
        with contextlib.suppress(RegistryError):
            rng.choice(
                [
                    lambda model=model: registry.archive([model], cascade=rng.random() < 0.5),
                    lambda model=model: registry.restore([model], cascade=rng.random() < 0.5),
                    lambda model=model: registry.set_alias(model, rng.choice("abc")),
                    lambda model=model: registry.remove_alias(model.split("_v")[0], rng.choice("abc")),
                    lambda model=model: registry.note(model, "seen"),
                    lambda model=model: rng.random() < 0.2 and registry.purge([model], purge_after_days=0),
                ]
            )()
        view = registry.view()
        for alias, identifier in view.aliases.items():
            assert view.records[identifier].state == "active"
            assert registry.resolve(alias) == identifier
        seen[view.last_event] = ({key: record.state for key, record in view.records.items()}, dict(view.aliases))
    assert len(seen) > 10
    for number, (states, aliases) in seen.items():
        if number:
            then = registry.view(until=number)
            assert {key: record.state for key, record in then.records.items()} == states
            assert then.aliases == aliases
    registry.rebuild()
    assert is_clean(verify(registry.root))


# ---------------------------------------------------------------- real races


def race(*operations):
    """Run all at once, each in a thread of its own; an operation may give way with a RegistryError."""
    barrier = threading.Barrier(len(operations))
    surprises = []

    def run(operation):
        barrier.wait()
        try:
            operation()
        except RegistryError:
            pass
        except BaseException as error:
            surprises.append(error)

    threads = [threading.Thread(target=run, args=[operation]) for operation in operations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surprises == []


def race_of_archiver_and_registrar(registry, make_draft):
    parent = registry.register(**make_draft(seed=1, model_type="cnn_lstm")).model_id
    draft = make_draft(seed=2, parents=[registry.pin(parent, role="forecaster")])
    one, two, three = (ModelRegistry(registry.root, durability="relaxed") for _ in range(3))
    race(
        lambda: one.archive([parent]),
        lambda: two.register(**draft),
        lambda: three.set_alias(parent, "champion"),
    )
    view = registry.view()
    alive = {key for key, record in view.records.items() if record.state == "active"}
    for key in alive:
        assert set(view.records[key].parents) <= alive
    assert set(view.aliases.values()) <= alive
    assert is_clean(verify(registry.root))


def test_never_an_active_child_of_an_archived_parent(new_registry, make_draft):
    for _ in range(10):
        race_of_archiver_and_registrar(new_registry(), make_draft)


@pytest.mark.slow
def test_never_an_active_child_of_an_archived_parent_in_500_rounds(make_draft):
    for _ in range(500):
        with tempfile.TemporaryDirectory() as folder:
            race_of_archiver_and_registrar(ModelRegistry(folder, durability="relaxed"), make_draft)
