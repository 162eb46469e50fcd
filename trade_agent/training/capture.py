"""`device.capture`: updates of an agent, and its steps in the market, are replayed as CUDA graphs (see graphs.py)."""

import logging

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.training.distributed import World
from trade_agent.training.graphs import CudaGraphs, Graphs, Replayed, Tensors
from trade_agent.training.learner import Learner

log = logging.getLogger(__name__)


def graphs_of(generator: torch.Generator, *, world: World) -> Graphs | None:
    """Where a run whose random numbers come from `generator` is captured; None, with one line in the log, where there
    are no CUDA graphs.

    Several processes wait for each other in the middle of an update, which no graph can hold.
    """
    if generator.device.type == "cuda" and world.size == 1:
        return CudaGraphs(generator)
    log.warning("device.capture: only one process on a GPU is captured: here the training runs as it is")
    return None


class CapturedLearner:
    """Stands for a `Learner`: the same updates, replayed from a recording for each `turn` and size of minibatch."""

    def __init__(self, learner: Learner, graphs: Graphs) -> None:
        self.learner = learner
        self.names: dict[tuple[object, int], list[str]] = {}  # of the metrics of each kind of update
        self.replayed = Replayed(self._update, name="an update", changed=learner.changed, graphs=graphs)

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        kind = self._kind(batch)
        values = self.replayed(kind, batch)["metrics"]
        self.learner.count()
        return dict(zip(self.names[kind], values.unbind(), strict=True))

    def _kind(self, batch: TensorDict) -> tuple[object, int]:
        return self.learner.turn, len(batch)

    def _update(self, batch: TensorDict) -> Tensors:
        metrics = self.learner.update(batch)
        self.names[self._kind(batch)] = list(metrics)
        return {"metrics": torch.stack(list(metrics.values()))}
