"""Two at work on one registry: the second does all of its job inside the first one, at each of its steps in turn.

Whatever the moment, one of them gives way: nothing live hangs on what was put aside, no alias dangles, no file is lost.
"""

import contextlib
import copy
import itertools
import os
import shutil

import pytest

from trade_agent.errors import RegistryError
from trade_agent.registry import lifecycle
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify

STEPS = ("link", "unlink", "rename")
ALL_STEPS = (*STEPS, "listdir", "open", "mkdir", "replace", "stat", "lstat")


class Stop:
    """Counts calls to the operating system and does something else before one of them."""

    def __init__(self, moment, action):
        self.moment, self.action, self.count, self.fired = moment, action, 0, False

    def hook(self, patch, names):
        for name in names:
            patch.setattr(os, name, self._hooked(getattr(os, name)))

    def _hooked(self, real):
        def call(*arguments, **named):
            self.count += 1
            if self.count > self.moment and not self.fired:
                self.fired = True
                self.action()
            return real(*arguments, **named)

        return call


class World:
    """A forecaster, perhaps with an agent on it that is active or archived, and what can be done to them."""

    def __init__(self, root, make_draft, child):
        self.registry = ModelRegistry(root, durability="relaxed")
        self.parent = self.registry.register(**make_draft(seed=1, model_type="cnn_lstm")).model_id
        parents = [self.registry.pin(self.parent, role="forecaster")]
        self.draft = make_draft(seed=3, model_type="hybrid", parents=parents)
        if child != "none":
            self.child = self.registry.register(**make_draft(seed=2, parents=parents)).model_id
        if child == "archived":
            self.registry.archive([self.child])

    def register(self, registry):
        registry.register(**self.draft)

    def archive_parent(self, registry):
        registry.archive([self.parent])

    def archive_both(self, registry):
        registry.archive([self.parent], cascade=True)

    def restore_child(self, registry):
        registry.restore([self.child], cascade=True)

    def purge_child(self, registry):
        registry.purge([self.child], purge_after_days=0)

    def alias_parent(self, registry):
        registry.set_alias(self.parent, "champion")

    def collect_and_repair(self, registry):
        registry.collect_garbage(older_than_hours=24)
        registry.repair()

    def check(self):
        """What must hold whenever both have returned."""
        view = self.registry.view()
        active = {key for key, record in view.records.items() if record.state == "active"}
        for identifier in active:
            assert set(view.records[identifier].parents) <= active, f"{identifier} hangs on what was put aside"
        assert set(view.aliases.values()) <= active
        findings = verify(self.registry.root)
        assert is_clean(findings)
        assert [finding for finding in findings if finding.kind == "unfinished"] == []
        for identifier, record in view.records.items():
            if record.state != "purged":
                self.registry.load(identifier, include_archived=True)
        assert self.registry.repair() == ()
        assert {key for key, each in self.registry.view().records.items() if each.state == "active"} == active

    def copied_to(self, root):
        """The same world in another folder, which is quicker than to make it anew."""
        shutil.copytree(self.registry.root, root)
        world = copy.copy(self)
        world.registry = ModelRegistry(root, durability="relaxed")
        return world

    def attempt(self, name):
        """Do something as a process of its own would."""
        with contextlib.suppress(RegistryError):  # it gave way
            getattr(self, name)(ModelRegistry(self.registry.root, durability="relaxed"))


PAIRS = [
    *itertools.permutations(["register", "archive_parent"]),
    *itertools.permutations(["archive_parent", "alias_parent"]),
    *itertools.permutations(["archive_both", "restore_child"]),
    *itertools.permutations(["purge_child", "restore_child"]),
]
MORE_PAIRS = [
    *itertools.permutations(["archive_both", "register"]),
    *itertools.permutations(["archive_parent", "restore_child"]),
    *(itertools.product(["register", "archive_both", "restore_child", "purge_child"], ["collect_and_repair"])),
    *((name, name) for name in ("archive_both", "restore_child", "purge_child")),
]


def run_at_every_step(tmp_path, make_draft, monkeypatch, first, second, calls):
    child = "active" if "archive_both" in (first, second) else "none"
    child = "archived" if {first, second} & {"restore_child", "purge_child"} else child
    template = World(tmp_path / "template", make_draft, child)
    for moment in itertools.count():
        world = template.copied_to(tmp_path / f"models-{moment}")
        stop = Stop(moment, lambda world=world: world.attempt(second))
        with monkeypatch.context() as patch:
            # The inner one cannot outwait the outer one, which stands still.
            patch.setattr(lifecycle, "RUN_WAIT_SECONDS", 0.0)
            stop.hook(patch, calls)
            world.attempt(first)
        world.check()
        if not stop.fired:
            return moment
    raise AssertionError("never reached")


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_one_gives_way_at_every_step_that_changes_something(tmp_path, make_draft, monkeypatch, first, second):
    assert run_at_every_step(tmp_path, make_draft, monkeypatch, first, second, STEPS) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [*PAIRS, *MORE_PAIRS])
def test_one_gives_way_at_every_step(tmp_path, make_draft, monkeypatch, first, second):
    assert run_at_every_step(tmp_path, make_draft, monkeypatch, first, second, ALL_STEPS) >= 20


@pytest.mark.parametrize(("child", "move"), [("active", "archive_both"), ("archived", "restore_child")])
def test_a_reader_gets_its_model_whatever_moves_meanwhile(tmp_path, make_draft, monkeypatch, child, move):
    template = World(tmp_path / "template", make_draft, child)
    for moment in itertools.count():
        world = template.copied_to(tmp_path / f"models-{moment}")
        reader = ModelRegistry(world.registry.root)
        stop = Stop(moment, lambda world=world: world.attempt(move))
        with monkeypatch.context() as patch:
            stop.hook(patch, ("listdir", "open"))
            loaded = reader.load(world.child, include_archived=True)
            listed = {record.id for record in reader.list(include_archived=True)}
        assert loaded.metadata.model_id == world.child
        assert listed == {world.child, world.parent}
        if not stop.fired:
            break
    assert moment > 10
