"""A healthy registry that others are writing to is never reported as damaged."""

import contextlib
import itertools
import random

import pytest

from tests.registry.conftest import draft
from tests.registry.faults import watched
from trade_agent.errors import RegistryError
from trade_agent.registry.snapshot import write_snapshot
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify


class Writer:
    """Does one thing after the other, each wholly, and to models of its own."""

    def __init__(self, registry, *, first_seed=0):
        self.registry = registry
        self.seeds = itertools.count(first_seed)
        self.rng = random.Random(first_seed)
        self.own = set()

    def register(self, **changes):
        changes = changes or {"model_type": self.rng.choice(["cnn_lstm", "sac", "ensemble"])}
        identifier = self.registry.register(**draft(seed=next(self.seeds), **changes)).model_id
        self.own.add(identifier)
        return identifier

    def register_a_pair(self):
        parent = self.register(model_type="cnn_lstm")
        self.register(model_type="hybrid", parents=[self.registry.pin(parent, role="forecaster")])

    def register_with_a_name(self):
        self.registry.set_alias(self.register(model_type="td3"), f"name-{self.rng.randrange(3)}")

    def archive(self):
        self.registry.archive([self.any("active")], cascade=True)

    def restore(self):
        self.registry.restore([self.any("archived")], cascade=True)

    def purge(self):
        self.registry.purge([self.any("archived")], cascade=True, purge_after_days=0)

    def any(self, state):
        records = self.registry.list(include_archived=True)
        return self.rng.choice([each.id for each in records if each.state == state and each.id in self.own])

    def refresh(self):
        write_snapshot(self.registry.layout, self.registry.view())

    def step(self):
        kinds = ["register", "register_a_pair", "register_with_a_name", "archive", "archive", "restore", "purge"]
        with contextlib.suppress(RegistryError, IndexError):  # there is nothing to archive, or it has a name
            getattr(self, self.rng.choice(kinds))()
        self.refresh()


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_done_between_two_calls_of_verify(tmp_path, seed):
    """At every tenth call or so something else happens, in both looks: whatever it is, it may not look like damage."""
    registry = ModelRegistry(tmp_path / "models", durability="relaxed")
    writer, rng = Writer(registry, first_seed=100 * seed), random.Random(seed)
    for _ in range(6):
        writer.register_a_pair()
    working, steps = [], []

    def disturb(number, name, call):
        if not working and len(steps) < 30 and rng.random() < 0.1:
            working.append(number)
            writer.step()
            working.clear()
            steps.append(name)
        return call()

    with watched(registry.root, disturb, names=("listdir", "open", "stat")):
        findings = verify(registry.root)
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert len(steps) > 10
    assert verify(registry.root) == []


def write(root, first_seed):
    writer = Writer(ModelRegistry(root, durability="relaxed"), first_seed=first_seed)
    for _ in range(60):
        writer.step()
        yield "done"


@pytest.mark.slow
@pytest.mark.distributed
def test_verify_beside_writers_at_work(tmp_path, fork):
    root = tmp_path / "models"
    Writer(ModelRegistry(root, durability="relaxed")).register()
    writers = [fork(write, root, 1000 * number) for number in (1, 2)]
    looks, finished = 0, False
    while not finished:
        finished = all(writer.finished() for writer in writers)
        findings = verify(root)
        assert [finding for finding in findings if finding.severity == "error"] == []
        looks += 1
    assert [writer.result()[1] for writer in writers] == [0, 0]
    assert looks > 5
    assert is_clean(verify(root, deep=True))
