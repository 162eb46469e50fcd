"""Processes that register at the same time, some of which are killed."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.registry.drafts import draft
from trade_agent.training.model_registry import ModelRegistry

LATEST_KILL = 0.02  # seconds after an acknowledgement: about two registrations, so any moment of one is hit


@dataclass
class Outcome:
    """``acknowledged``: seed -> id, as the writers said. ``killed``: processes that did not come to their end.

    ``looks`` at the registry meanwhile, and how many of them went wrong.
    """

    acknowledged: dict[int, str]
    killed: int
    seconds: float
    looks: int
    broken_looks: int


def _write(root: Path, seeds: Iterable[int], start: Barrier, say: Connection) -> None:
    registry = ModelRegistry(root, durability="full")
    start.wait()
    for seed in seeds:
        say.send((seed, registry.register(**draft(seed)).model_id))


def storm(root: Path, *, writers: int, each: int, kills: int, number: int = 0) -> Outcome:
    """Let ``writers`` processes register ``each`` models, kill ``kills`` of them on the way, and read meanwhile.

    ``number`` tells storms over one registry apart: they write models of other seeds and kill at other moments.
    """
    context = get_context("fork")
    ModelRegistry(root).rebuild()
    first = number * writers * each
    start = context.Barrier(writers + 1)
    pipes = [context.Pipe(duplex=False) for _ in range(writers)]
    seeds = [range(first + place * each, first + (place + 1) * each) for place in range(writers)]
    processes = [
        context.Process(target=_write, args=(root, own, start, say)) for own, (_, say) in zip(seeds, pipes, strict=True)
    ]
    for process, (_, say) in zip(processes, pipes, strict=True):
        process.start()
        say.close()
    acknowledged: dict[int, str] = {}
    rng = random.Random(writers + number)
    doomed = {
        place: (rng.randint(1, each - 1), rng.uniform(0, LATEST_KILL)) for place in rng.sample(range(writers), kills)
    }
    threads = [
        threading.Thread(target=_listen, args=(processes[place].pid, pipe, acknowledged, doomed.get(place)))
        for place, (pipe, _) in enumerate(pipes)
    ]
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    looks, broken = _look_on(root, processes) if kills else (0, 0)
    for process, thread in zip(processes, threads, strict=True):
        process.join()
        thread.join()
    killed = sum(process.exitcode == -signal.SIGKILL for process in processes)
    return Outcome(acknowledged, killed, time.perf_counter() - begun, looks, broken)


def _listen(pid: int | None, pipe: Connection, acknowledged: dict[int, str], doom: tuple[int, float] | None) -> None:
    """Hear a writer out; ``doom``: kill it so many seconds after so many acknowledgements."""
    heard = 0
    while True:
        try:
            seed, identifier = pipe.recv()
        except EOFError:
            return
        acknowledged[seed] = identifier
        heard += 1
        if doom is not None and heard == doom[0] and pid is not None:
            time.sleep(doom[1])
            os.kill(pid, signal.SIGKILL)  # it is not waited for yet, so the number is still its own


def _look_on(root: Path, processes: list) -> tuple[int, int]:
    """List and get until the writers are done: the number of calls, and of those that failed or lost a model."""
    registry, rng = ModelRegistry(root), random.Random(0)
    seen: set[str] = set()
    looks = broken = 0
    while any(process.is_alive() for process in processes):
        try:
            records = registry.list()
            found = {record.id for record in records}
            broken += not seen <= found
            seen = found
            for record in rng.sample(records, min(20, len(records))):
                broken += registry.get(record.id).model_id != record.id
                looks += 1
        except Exception:
            broken += 1
        looks += 1
    return looks, broken
