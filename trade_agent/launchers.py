"""Makes our Hydra launchers known to Hydra, which would look for plugins in packages of another name only."""

import importlib.util

from hydra.core.plugins import Plugins


def register_launchers() -> None:
    """Nothing where the extra is not installed: composing then says which one (`config.load.explain`)."""
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
        from trade_agent.slurm import SlurmLauncher

        Plugins.instance().register(SlurmLauncher)
