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


@dataclass
class Outcome:
    """``acknowledged``: seed -> id, as the writers said. ``looks`` at the registry meanwhile, and what went wrong."""

    acknowledged: dict[int, str]
    seconds: float
    looks: int
    broken_looks: int


def _write(root: Path, seeds: Iterable[int], start: Barrier, say: Connection) -> None:
    registry = ModelRegistry(root, durability="full")
    start.wait()
    for seed in seeds:
        say.send((seed, registry.register(**draft(seed)).model_id))


def storm(root: Path, *, writers: int, each: int, kills: int) -> Outcome:
    """Let ``writers`` processes register ``each`` models, kill ``kills`` of them on the way, and read meanwhile."""
    context = get_context("fork")
    ModelRegistry(root).rebuild()
    start = context.Barrier(writers + 1)
    pipes = [context.Pipe(duplex=False) for _ in range(writers)]
    seeds = [range(number * each, (number + 1) * each) for number in range(writers)]
    processes = [
        context.Process(target=_write, args=(root, own, start, say)) for own, (_, say) in zip(seeds, pipes, strict=True)
    ]
    for process, (_, say) in zip(processes, pipes, strict=True):
        process.start()
        say.close()
    acknowledged: dict[int, str] = {}
    rng = random.Random(writers)
    doomed = {number: rng.randint(1, each - 1) for number in rng.sample(range(writers), kills)}
    threads = [
        threading.Thread(target=_listen, args=(processes[number].pid, pipe, acknowledged, doomed.get(number)))
        for number, (pipe, _) in enumerate(pipes)
    ]
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    looks, broken = _look_on(root, processes) if kills else (0, 0)
    for process, thread in zip(processes, threads, strict=True):
        process.join()
        thread.join()
    return Outcome(acknowledged, time.perf_counter() - begun, looks, broken)


def _listen(pid: int | None, pipe: Connection, acknowledged: dict[int, str], kill_after: int | None) -> None:
    heard = 0
    while True:
        try:
            seed, identifier = pipe.recv()
        except EOFError:
            return
        acknowledged[seed] = identifier
        heard += 1
        if heard == kill_after and pid is not None:
            os.kill(pid, signal.SIGKILL)


def _look_on(root: Path, processes: list) -> tuple[int, int]:
    """List and get until the writers are done: the number of calls, and of those that failed or lost a model."""
    registry, rng, seen = ModelRegistry(root), random.Random(0), set()
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
