"""Many writers at once, some of them killed, while a reader looks on: nothing lost, nothing twice, nothing half."""

import fcntl
import os
import random
import signal

import pytest

from tests.registry.conftest import draft
from trade_agent.errors import RegistryError
from trade_agent.registry import publish
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify


def write(root, seeds):
    registry = ModelRegistry(root, durability="relaxed")
    for seed in seeds:
        yield f"{seed} {registry.register(**draft(seed=seed)).model_id}"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("locks", ["real", "succeed for everybody"])
def test_a_storm_of_writers(tmp_path, fork, monkeypatch, locks):
    if locks != "real":  # as on some shared disks
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        monkeypatch.setattr(fcntl, "lockf", lambda *_: None)
    rng = random.Random(3)
    root, reader = tmp_path / "models", ModelRegistry(tmp_path / "models")
    seeds = [range(100 * number, 100 * number + 25) for number in range(8)]
    writers = [fork(write, root, each) for each in seeds]
    doomed = {writer: rng.randint(1, 20) for writer in rng.sample(writers, 3)}
    lines, versions, finished = [], set(), False
    for writer, count in doomed.items():
        lines += writer.read(count)
        os.kill(writer.pid, signal.SIGKILL)
    while not finished:
        finished = all(writer.finished() for writer in writers)
        records = reader.list()
        assert versions <= {record.id for record in records}
        versions = {record.id for record in records}
        for record in rng.sample(records, min(len(records), 5)):
            assert reader.get(record.id).version == record.version
            reader.load(record.id)
    for writer in writers:
        printed, status = writer.result()
        assert status == 0 or (writer in doomed and status == -signal.SIGKILL)
        lines += printed
    acknowledged = dict(line.split() for line in lines)
    assert len(set(acknowledged.values())) == len(acknowledged) == len(lines)
    for registry in (reader, ModelRegistry(root)):
        found = {str(metadata.seed): metadata.model_id for metadata in registry.find("sac", lambda _: True)}
        assert acknowledged.items() <= found.items()
        assert len(found) == len(registry.list())  # no run has two versions
    assert is_clean(verify(root))
    for seed in (seed for each in seeds for seed in each):  # the jobs are started again, and get what they had
        metadata = reader.register(**draft(seed=seed))
        assert metadata.model_id == found.get(str(seed), metadata.model_id)
    assert len(reader.list()) == 8 * 25
    reader.collect_garbage(older_than_hours=0)
    assert verify(root, deep=True) == []


def test_a_writer_that_was_stopped_and_given_up_is_turned_away(registry, fork):
    def stop_before_the_commit(root):
        real = publish.link_new

        def link(source, target):
            if target.name.startswith("metadata_v"):
                os.kill(os.getpid(), signal.SIGSTOP)
            return real(source, target)

        publish.link_new = link
        try:
            yield ModelRegistry(root).register(**draft()).model_id
        except RegistryError as error:
            yield str(error)

    writer = fork(stop_before_the_commit, registry.root)
    assert os.WIFSTOPPED(os.waitpid(writer.pid, os.WUNTRACED)[1])
    assert registry.list() == ()
    assert "sac/config_v1.0.0.json" in registry.collect_garbage(older_than_hours=0)
    os.kill(writer.pid, signal.SIGCONT)
    (said,), status = writer.result()
    assert "was fenced" in said
    assert status == 0
    assert registry.list() == ()
    assert verify(registry.root) == []
    assert registry.register(**draft()).version == "1.0.1"  # one outcome for each number
