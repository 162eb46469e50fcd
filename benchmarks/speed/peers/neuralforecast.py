"""Training of neuralforecast's LSTM on one series."""

import logging
import time
import warnings
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM

from benchmarks.speed.peers.serve import serve

torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class State:
    frame: pd.DataFrame
    settings: dict[str, int]


def load(path: str, settings: dict[str, int]) -> dict[str, str]:
    values = np.load(path)["values"]
    days = pd.date_range("2000-01-01", periods=len(values), freq="D")
    State.frame = pd.DataFrame({"unique_id": "a", "ds": days, "y": values})
    State.settings = settings
    return {"neuralforecast": version("neuralforecast"), "torch": version("torch")}


def _fit(steps: int) -> float:
    model = LSTM(
        h=1,
        max_steps=steps,
        batch_size=1,
        scaler_type="identity",
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **State.settings,
    )
    started = time.process_time()
    NeuralForecast(models=[model], freq="D").fit(State.frame)
    return time.process_time() - started


def fit(steps: int) -> float:
    """Seconds of ``steps`` training steps, without what a fit costs before its first one."""
    return _fit(steps + 10) - _fit(10)


serve(load=load, fit=fit)
