"""What `hydra/launcher=slurm` refuses before it submits anything. The jobs themselves are in tests/cluster/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from trade_agent.config.load import compose_config
from trade_agent.errors import ConfigError
from trade_agent.slurm import check_options

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"timeout_min": 60, "signal_delay_s": 60, "max_num_timeout": 0, "array_parallelism": 1}
OPTIONS |= {"nodes": 1, "tasks_per_node": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeout_min": 0}, "timeout_min=0 is below 1"),
        ({"signal_delay_s": 0}, "signal_delay_s=0 is below 1"),
        ({"array_parallelism": 0}, "array_parallelism=0 is below 1"),
        ({"max_num_timeout": -1}, "max_num_timeout is negative"),
        ({"timeout_min": 1}, "signal_delay_s=60 is no less than the time limit"),
        ({"nodes": 2}, "one task on one node"),
        ({"tasks_per_node": 2}, "one task on one node"),
    ],
)
def test_options_that_no_run_could_use_are_refused(change: dict[str, int], message: str) -> None:
    check_options(OPTIONS)
    with pytest.raises(ConfigError, match=message):
        check_options(OPTIONS | change)


def test_a_host_without_slurm_gets_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", f"paths.outputs={tmp_path / 'o'}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: hydra/launcher=slurm needs sbatch, which is not on the PATH; run it on a SLURM host"
    ]


def test_an_installation_without_the_extra_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(launchers, "submitit_slurm.yaml")  # what the extra adds
    with pytest.raises(ConfigError, match=r"^hydra/launcher=slurm needs an extra; pip install 'trade-agent\[slurm\]'$"):
        compose_config(["hydra/launcher=slurm"])
