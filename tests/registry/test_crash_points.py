"""A process is stopped, or its disk fails, at each file-system call of every operation in turn.

Afterwards a reader sees the state before or after, ``verify`` finds nothing that ``repair`` does not mend, and the next
call does what was asked for.
"""

import errno
import os
import shutil
import signal

import pytest

from tests.registry.conftest import draft
from tests.registry.faults import CHANGES, fail_at, kill_at, lose_replies, watched
from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry import lifecycle, snapshot
from trade_agent.registry.publish import TOMBSTONE
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify

CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.ESTALE]
LEAF = "hybrid_v1.0.0_grade_B_sharpe_0.42"


def register(registry):
    registry.register(**draft(seed=7))


def register_child(registry):
    registry.register(**draft(seed=8, model_type="hybrid", parents=[registry.pin("sac@1", role="agent")]))


OPERATIONS = {
    "register": register,
    "register a child": register_child,
    "alias": lambda registry: registry.set_alias("sac@1", "champion"),
    "note": lambda registry: registry.note("sac@1", "as expected"),
    "rebuild": lambda registry: registry.rebuild(),
    "archive": lambda registry: registry.archive([LEAF]),
    "restore": lambda registry: registry.restore([LEAF]),
    "purge": lambda registry: registry.purge([LEAF], purge_after_days=0),
    "collect": lambda registry: registry.collect_garbage(older_than_hours=0),
    "repair": lambda registry: registry.repair(),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """For each operation a registry that it can be done in, to be copied."""
    folder = tmp_path_factory.mktemp("bases")
    active = ModelRegistry(folder / "active")
    register(active)
    register_child(active)
    shutil.copytree(active.root, folder / "archived")
    ModelRegistry(folder / "archived").archive([LEAF])
    shutil.copytree(active.root, folder / "abandoned")
    (folder / "abandoned/temp/gone-1-000000000000").mkdir()
    claim = safe_io.read_checked_json(folder / "abandoned/sac/.claims/v1.0.0") | {"version": "1.0.1"}
    (folder / "abandoned/sac/.claims/v1.0.1").write_bytes(safe_io.checked_json(claim))
    (folder / "abandoned/sac/config_v1.0.1.json").write_bytes(b"{}")
    shutil.copytree(active.root, folder / "half")
    half = ModelRegistry(folder / "half")
    half.archive([LEAF])
    for path in (half.root / "archived/hybrid").glob("config_*"):
        shutil.move(path, half.root / "hybrid" / path.name)
    return dict.fromkeys(OPERATIONS, folder / "active") | {
        "restore": folder / "archived",
        "purge": folder / "archived",
        "collect": folder / "abandoned",
        "repair": folder / "half",
    }


def seen(registry):
    """What a reader sees: states of all models, aliases and the texts of notes; every model with files is loaded."""
    view = registry.view()
    for record in view.records.values():
        if record.state != snapshot.PURGED:
            registry.load(record.id, include_archived=True)
    notes = [event.get("text") for event in registry.history() if event["type"] == "note"]
    return {key: record.state for key, record in view.records.items()}, view.aliases, notes[:1]


@pytest.fixture
def places(bases, tmp_path, monkeypatch):
    """A function: operation -> (copy of its registry, what was seen before it, what is seen after it)."""
    monkeypatch.setattr(snapshot, "REFRESH_SECONDS", -1)  # every change writes registry.json
    monkeypatch.setattr(lifecycle, "RUN_WAIT_SECONDS", 0.0)  # nobody else is at work who could be waited for

    def place(name):
        for copy in ("undisturbed", "disturbed"):
            shutil.rmtree(tmp_path / copy, ignore_errors=True)
            shutil.copytree(bases[name], tmp_path / copy)
        registry = ModelRegistry(tmp_path / "undisturbed")
        before = seen(registry)
        OPERATIONS[name](registry)
        return tmp_path / "disturbed", before, seen(registry)

    return place


def renew(bases, name, root):
    shutil.rmtree(root)
    shutil.copytree(bases[name], root)


def check_after(name, root, before, after, where):
    """The state is one of the two, can be mended, and the operation done."""
    registry = ModelRegistry(root)
    assert seen(registry) in (before, after), where
    registry.repair()
    assert is_clean(findings := verify(root)), (where, findings)
    assert seen(ModelRegistry(root)) in (before, after), where
    registry = ModelRegistry(root)
    OPERATIONS[name](registry)
    assert seen(ModelRegistry(root)) == after, where
    registry.collect_garbage(older_than_hours=0)
    # A private folder whose writer lives on, as after a failure here, is not taken away.
    assert [finding for finding in verify(root) if f"-{os.getpid()}-" not in finding.path] == [], where


def stop_at_points(name, bases, place, fork, points):
    """Stop a process at each of the ``points``; how many of them there were.

    A call that only reads leaves the disk as it was: stopping before it is stopping before the next that changes it.
    """
    root, before, after = place

    def work(at):
        with watched(root, kill_at(at), CHANGES):
            OPERATIONS[name](ModelRegistry(root))
        yield "done"

    stopped = 0
    for at in points:
        renew(bases, name, root)
        lines, status = fork(work, at).result()
        if lines == ["done"]:
            assert status == 0
            break
        assert (lines, status) == ([], -signal.SIGKILL)
        check_after(name, root, before, after, where=(name, at))
        stopped += 1
    return stopped


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_process_stopped_at_some_calls(name, bases, places, fork):
    assert stop_at_points(name, bases, places(name), fork, range(5, 10**6, 17))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_process_stopped_at_every_call(name, bases, places, fork):
    assert stop_at_points(name, bases, places(name), fork, range(1, 10**6)) >= 5


def fail_at_points(name, bases, place, code, points):
    """Let each of the ``points`` fail; how many of them there were."""
    root, before, after = place
    count = 0
    for at in points:
        renew(bases, name, root)
        failed = []
        try:
            with watched(root, fail_at(at, code, failed)):
                OPERATIONS[name](ModelRegistry(root))
            assert seen(ModelRegistry(root)) == after, (name, at, failed)
        except RegistryError:
            assert failed
        if not failed:
            break
        check_after(name, root, before, after, where=(name, at, failed))
        count += 1
    return count


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_that_fails_at_some_calls(name, bases, places):
    assert fail_at_points(name, bases, places(name), errno.EIO, range(7, 10**6, 41))


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_a_disk_that_fails_at_every_call_of_register(bases, places, code):
    assert fail_at_points("register", bases, places("register"), code, range(1, 10**6)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_that_fails_at_every_call(name, bases, places):
    assert fail_at_points(name, bases, places(name), errno.EIO, range(1, 10**6)) >= 5


@pytest.mark.parametrize("name", OPERATIONS)
def test_replies_that_are_lost_at_every_link(name, places):
    root, _, after = places(name)
    with watched(root, lose_replies(["link"])):
        OPERATIONS[name](ModelRegistry(root))
    assert seen(ModelRegistry(root)) == after
    assert is_clean(verify(root))
    assert TOMBSTONE not in [path.read_bytes() for path in root.glob("sac/metadata_*")] or name == "collect"
