"""Several writers, writers that die, replies that get lost: one outcome per number, nothing half visible."""

import errno
import json
import os
import signal

import pytest

from trade_agent.errors import RegistryError
from trade_agent.registry import layout as layout_module
from trade_agent.registry import publish
from trade_agent.registry.verify import is_clean
from trade_agent.registry.versions import Version
from trade_agent.training.model_registry import ModelRegistry, verify


def register_many(root, make_draft, seeds):
    registry = ModelRegistry(root, durability="relaxed")
    for seed in seeds:
        yield registry.register(**make_draft(seed=seed)).model_id


def die_at_link(root, make_draft, seed, at, moment):
    """Kill the process right before or after its n-th hard link."""
    real, count = os.link, 0

    def link(source, target):
        nonlocal count
        count += 1
        if count == at and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.link = link
    yield from register_many(root, make_draft, [seed])


def assert_whole(registry):
    """Every visible model can be loaded, and verify finds left-overs at most."""
    for record in registry.list():
        registry.load(record.id)
    findings = verify(registry.root)
    assert is_clean(findings), findings


def test_two_writers_lose_nothing_and_share_no_number(registry, make_draft, fork):
    seeds = [*range(20)], [*range(100, 120)]
    writers = [fork(register_many, registry.root, make_draft, each) for each in seeds]
    seen = 0
    while not all(writer.finished() for writer in writers):
        records = registry.list()  # a reader meanwhile sees whole models, and never fewer
        assert len(records) >= seen
        seen = len(records)
        for record in records[-2:]:
            registry.get(record.id)
    printed = []
    for writer in writers:
        lines, status = writer.result()
        assert status == 0
        printed += lines
    assert len(set(printed)) == 40
    assert {record.id for record in registry.list()} == set(printed)
    assert {metadata.seed for metadata in registry.find("sac", lambda _: True)} == {*seeds[0], *seeds[1]}
    assert len({record.version for record in registry.list()}) == 40
    assert verify(registry.root) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_writer_killed_at_any_link_leaves_nothing_half_visible(registry, make_draft, fork, moment):
    registry.register(**make_draft(seed=0))
    links = ["number", "run", "model", "preprocessor", "config", "metadata"]
    for at, name in enumerate(links, start=1):
        shown = [record.id for record in registry.list()]
        assert fork(die_at_link, registry.root, make_draft, at, at, moment).result() == ([], -signal.SIGKILL)
        committed = (moment, name) == ("after", "metadata")
        assert len(registry.list()) == len(shown) + committed
        assert_whole(registry)
        # The run is started again and gets exactly one version, also when it had committed without saying so.
        metadata = registry.register(**make_draft(seed=at))
        assert [found.model_id for found in registry.find("sac", lambda m, at=at: m.seed == at)] == [metadata.model_id]
    assert len(registry.list()) == 1 + len(links)
    assert_whole(registry)


def test_one_version_for_one_run_from_several_processes(registry, make_draft, fork):
    def register_again(root):
        for _ in range(5):
            yield ModelRegistry(root).register(**make_draft(run_id="job", seed=3)).model_id

    printed = []
    for writer in [fork(register_again, registry.root) for _ in range(4)]:
        lines, status = writer.result()
        assert status == 0
        printed += lines
    assert (len(printed), len(set(printed)), len(registry.list())) == (20, 1, 1)


def test_a_paused_writer_that_was_given_up_is_fenced(registry, make_draft, monkeypatch):
    real = publish.link_new

    def fenced_meanwhile(source, target):
        if target.name.startswith("metadata_v"):
            monkeypatch.setattr(publish, "link_new", real)
            assert publish.fence(registry.layout, "sac", Version(1, 0, 0))
        return real(source, target)

    monkeypatch.setattr(publish, "link_new", fenced_meanwhile)
    with pytest.raises(RegistryError, match="fenced"):
        registry.register(**make_draft())
    assert registry.list() == ()
    assert registry.register(**make_draft()).version == "1.0.1"  # the number is not used again
    assert is_clean(verify(registry.root))
    assert not publish.fence(registry.layout, "sac", Version(1, 0, 1))  # nor can a committed model be fenced


def test_a_lost_reply_is_not_a_lost_race(registry, make_draft, monkeypatch):
    real = os.link

    def reply_lost(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    registry.register(**make_draft(seed=0))
    monkeypatch.setattr(layout_module.os, "link", reply_lost)
    assert registry.register(**make_draft(seed=1)).version == "1.0.1"
    assert [record.version for record in registry.list()] == ["1.0.0", "1.0.1"]
    assert verify(registry.root) == []


def test_a_damaged_claim_does_not_stop_the_line(registry, make_draft):
    registry.register(**make_draft(seed=0))
    claim = registry.root / "sac" / ".claims" / "v1.0.0"
    assert json.loads(claim.read_bytes())["version"] == "1.0.0"
    claim.unlink()
    claim.write_bytes(b"junk")
    assert registry.register(**make_draft(seed=1)).version == "1.0.1"
    claim.unlink()
    assert registry.register(**make_draft(seed=2)).version == "1.0.2"
