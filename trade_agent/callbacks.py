"""What happens around a Hydra sweep, see `hydra.callbacks` in conf/search/base.yaml."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class PrepareStudies(Callback):
    """Makes the folder of the Optuna study: its storage opens a file and no folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Path(config.paths.outputs).mkdir(parents=True, exist_ok=True)
