"""Checkpoints of work that takes long: written whole or not at all, and complete, so that a run which was killed and
goes on ends with the bits of one that was not.

A piece of work (one training loop) keeps a `Session`. It names what its state consists of (`keep`), takes up the newest
checkpoint (`restore`), and calls `boundary` after each step. A stage has one folder of checkpoints, with the last two
of each of its pieces. The name of a file ends with the start of its own SHA-256: one that was damaged is told and
passed over for the one before.
"""

import contextlib
import logging
import math
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trade_agent import safe_io
from trade_agent.errors import CheckpointError, RegistryError, TrainingDivergedError, UnsafeFileError
from trade_agent.training.distributed import World
from trade_agent.training.signals import StopFlag

log = logging.getLogger(__name__)
KEPT = 2
FOLDER, STAGE = "checkpoints", "stage.json"
_FILE = re.compile(r"(?P<piece>.+)-(?P<number>\d{6})-(?P<sha>[0-9a-f]{16})\.pth")


class Checkpoints:
    """The checkpoints of one stage, and what else of it outlives a process: `stage.json` in the same folder.

    folder: made when something is first written; None keeps no checkpoints. every_seconds: between two of a piece; 0
    writes at every boundary. stop: asks every boundary for a last checkpoint and the end. world: every process writes
    its own part of a checkpoint, and takes up the newest of which all parts are whole.

    retries: how often the stage was rolled back because it diverged; each halves the learning rates.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        every_seconds: float,
        stop: StopFlag,
        world: World = World(),  # noqa: B008  immutable
    ) -> None:
        self.folder, self.every_seconds, self.stop, self.world = folder, every_seconds, stop, world
        past = world.agreed(_past(folder))
        self.retries, self._seconds_before, self._started = past["retries"], past["seconds"], time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on the stage so far, by every process that worked on it up to its last checkpoint, and by this one."""
        return float(self._seconds_before + time.monotonic() - self._started)

    def roll_back(self) -> None:
        """The stage diverged: its next try goes on from the last checkpoint with half the learning rates."""
        self.retries += 1
        self.note()
        self.world.agreed(None)  # nobody goes on before it is written

    def note(self) -> None:
        """Write what is to outlive this process."""
        if self.folder is not None and self.world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            past = safe_io.checked_json({"retries": self.retries, "seconds": self.seconds})
            safe_io.write_bytes(self.folder / STAGE, past)

    def session(self, piece: str, generator: torch.Generator) -> "Session":
        """For one piece of work of the stage, whose random numbers come from `generator` and the global generators."""
        return Session(self, re.sub(r"[^a-z0-9_.]+", "_", piece.lower()), generator)

    def remove(self) -> None:
        """Called when the stage is registered and its result is written."""
        if self.folder is not None and self.world.main:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()


def _past(folder: Path | None) -> dict[str, Any]:
    """What `note` wrote; that of a stage which begins where there is none, or it is damaged."""
    if folder is not None and (folder / STAGE).exists():
        try:
            return safe_io.read_checked_json(folder / STAGE)
        except RegistryError as error:
            log.warning("%s is passed over: %s", folder / STAGE, error)
    return {"retries": 0, "seconds": 0.0}


def stage_under_way(run_dir: Path) -> str:
    """Which stage of a run was begun last and is not finished: it has a folder of checkpoints. Empty for none."""
    begun = list((run_dir / FOLDER).glob(f"*/{STAGE}"))
    return max(begun, key=lambda path: path.stat().st_mtime_ns).parent.name if begun else ""


def no_checkpoints() -> Checkpoints:
    """For work that is short, or of which nothing is to stay."""
    return Checkpoints(None, every_seconds=math.inf, stop=StopFlag(""))


class Session:
    """The state of one piece of work, and its checkpoints."""

    def __init__(self, checkpoints: Checkpoints, piece: str, generator: torch.Generator) -> None:
        self.checkpoints, self.piece, self.generator = checkpoints, piece, generator
        self.finished = False
        self._parts: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}
        self._first: Callable[[], None] | None = None
        self._number = 0
        self._last_write = time.monotonic()

    @property
    def rate_factor(self) -> float:
        """What the learning rates of the configuration are multiplied by."""
        return float(0.5**self.checkpoints.retries)

    @property
    def _prefix(self) -> str:
        """Of this process's files."""
        world = self.checkpoints.world
        return self.piece if world.size == 1 else f"{self.piece}-{world.rank}of{world.size}"

    @property
    def _device(self) -> str:
        """Kind of device that the training runs on."""
        return self.generator.device.type

    def keep(self, name: str, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
        """Make something part of every checkpoint: `get` returns tensors and plain values, `put` takes them back."""
        self._parts[name] = (get, put)

    def begin_with(self, first: Callable[[], None]) -> None:
        """What comes before the first step, where `restore` finds no checkpoint."""
        self._first = first

    def restore(self) -> bool:
        """Take up the newest checkpoint that is whole; False where there is none.

        Raises CheckpointError for one that belongs to other work.
        """
        if self.checkpoints.folder is not None:
            for left_over in self.checkpoints.folder.glob(f".{self._prefix}-*"):  # of a process killed while it wrote
                left_over.unlink()
        world, files = self.checkpoints.world, {int(match["number"]): path for path, match in self._files()}
        numbers = [set(each) for each in world.gathered(list(files))]
        self._number = max(set.union(*numbers), default=0)  # behind those that are passed over
        for number in sorted(set.intersection(*numbers), reverse=True):
            state = self._read(files[number])
            if all(world.gathered(state is not None)):  # all parts are whole
                break
        else:
            number, state = 0, None
        if world.size > 1:
            # One that a killed process did not write any more would count among those to keep, and push out the common.
            for later in files.keys() - set(range(number + 1)):
                files[later].unlink()
        if state is None:
            if self._first is not None:
                self._first()
            return False
        if state.keys() != self._parts.keys() | {"rng", "finished", "device"}:
            raise CheckpointError(f"{files[number]} belongs to other work", "start again in another run folder")
        for name, (_, put) in self._parts.items():
            put(state[name])
        put_rng(state["rng"], self.generator)
        self.finished = bool(state["finished"])
        return True

    def _read(self, path: Path) -> dict[Any, Any] | None:
        """What one file holds; None, told in the log, where it is damaged, unreadable or of another kind of device."""
        try:
            data = safe_io.read_bytes(path)
            if not safe_io.sha256_bytes(data).startswith(path.stem[-16:]):
                raise UnsafeFileError("its checksum does not fit")
            state = safe_io.load_tensors(data, name=str(path))
        except UnsafeFileError as error:
            log.warning("%s is damaged, the one before is taken: %s", path, error)
            return None
        except RegistryError as error:
            log.warning("the checkpoint before is taken: %s", error.message)
            return None
        if state.get("device", self._device) != self._device:  # its random numbers have no meaning here
            log.warning("%s was written by a training on %s: it is passed over", path, state["device"])
            return None
        return state

    def boundary(self, *, due: bool = False) -> None:
        """Between two steps: write a checkpoint where one is due, stop where that was asked for.

        Raises StoppedError after the checkpoint was written, TrainingDivergedError instead of writing a state that is
        not finite.
        """
        age = time.monotonic() - self._last_write
        stop = self.checkpoints.stop
        old, number = self.checkpoints.world.most(age >= self.checkpoints.every_seconds, stop.number)
        if due or old or number:
            self.write()
        if number:
            stop.raise_stopped(number)

    def finish(self) -> None:
        """Write the last checkpoint: whoever restores it finds `finished` and has nothing left to do."""
        self.finished = True
        self.write()

    def write(self) -> None:
        """Write a checkpoint now, durably, and remove those before the last two."""
        folder = self.checkpoints.folder
        if folder is None:
            return
        state = {name: get() for name, (get, _) in self._parts.items()}
        state |= {"rng": get_rng(self.generator), "finished": self.finished, "device": self._device}
        if any(self.checkpoints.world.any(not all_finite(state))):
            raise TrainingDivergedError("the state of the training is not finite", "lower model.learning_rate")
        data = safe_io.dump_tensors(state)
        self._number += 1
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._prefix}-{self._number:06d}-{safe_io.sha256_bytes(data)[:16]}.pth"
        safe_io.write_bytes(path, data)
        self.checkpoints.note()
        for old, _ in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)
        self._last_write = time.monotonic()

    def _files(self) -> list[tuple[Path, re.Match[str]]]:
        """Checkpoints of this piece, oldest first."""
        folder = self.checkpoints.folder
        if folder is None or not folder.is_dir():
            return []
        matches = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.iterdir()))
        return [(path, match) for path, match in matches if match and match["piece"] == self._prefix]


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor in nested dicts and lists is finite."""
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(all_finite, value))
    if isinstance(value, Tensor) and value.is_floating_point():
        return bool(torch.isfinite(value).all())
    return not (isinstance(value, float) and math.isnan(value))


def get_rng(generator: torch.Generator) -> dict[str, Any]:
    """State of every source of random numbers: `generator` and the global ones of torch, NumPy and Python."""
    version, internal, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  libraries below us may draw from it
    assert isinstance(numpy, dict)
    return {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": [version, list(internal), gauss],
    }


def put_rng(state: dict[str, Any], generator: torch.Generator) -> None:
    """Set what `get_rng` returned."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy["key"].numpy().astype(np.uint32), "pos": numpy["pos"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
