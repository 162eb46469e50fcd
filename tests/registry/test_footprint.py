"""What must be installed: for the registry nothing, for an extra what `pyproject.toml` says and nothing of the core."""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import torch

from trade_agent import safe_io

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

REGISTRY_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from trade_agent.registry.retention import PrunePolicy
from trade_agent.registry.scan import scan
from trade_agent.training.model_registry import ModelRegistry, verify
registry = ModelRegistry(sys.argv[2])
first, second = registry.list()
assert registry.get("sac@latest").seed == 1
registry.set_alias(first.id, "champion")
registry.note(first.id, "seen")
registry.archive([second.id])
registry.restore([second.id])
assert registry.lineage("sac@champion") == {"up": (), "down": ()}
assert registry.prune_plan(PrunePolicy(min_age_days=0)) == []
assert registry.collect_garbage(older_than_hours=0) == registry.repair() == ()
registry.rebuild()
assert verify(sys.argv[2]) == []
assert [each.safe for each in scan(registry.root / first.file)] == [True]
print(sorted(name for name in sys.modules if "site-packages" in (getattr(sys.modules[name], "__file__", "") or "")))
"""


def test_the_registry_needs_nothing_but_the_standard_library(registry, make_draft):
    """In an interpreter that finds no installed package; only weights and fitted arrays need torch and numpy."""
    for seed in range(2):
        registry.register(**make_draft(seed=seed))
    command = [sys.executable, "-I", "-S", "-c", REGISTRY_ALONE, str(ROOT), str(registry.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


SIGNING = """
from pathlib import Path
from trade_agent.registry.signing import Signing, make_keys
folder = Path(sys.argv[2])
make_keys(folder / "keys")
signing = Signing("require", folder / "keys")
(folder / "metadata_v1.0.0.sig").write_bytes(signing.sign(b"{}", "1.0.0"))
from trade_agent import safe_io
signing.verify(folder, "1.0.0", safe_io.sha256_bytes(b"{}"))
"""
SCAN = """
from trade_agent.registry.scan import scan
assert [verdict.safe for verdict in scan(sys.argv[2] + "/model.pth", deep=True)] == [True]
"""
USES = {
    "signing": SIGNING,
    "scan": SCAN,
    "yahoo": "import yfinance",
    "crypto": "import ccxt",
    "mlflow": "import mlflow",
    "dashboard": "import optuna_dashboard",
    "slurm": "import hydra_plugins.hydra_submitit_launcher.submitit_launcher",
    "postgresql": "import psycopg",
    "reference": "import Box2D",
}


def test_every_extra_is_used_below():
    assert USES.keys() == EXTRAS.keys() - {"test"}


LARGE = {"yahoo", "crypto", "mlflow"}  # a hundred megabytes each: by hand, pytest -m network


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [pytest.param(name, marks=[pytest.mark.network] if name in LARGE else []) for name in USES]
)
def test_an_extra_installs_and_imports_in_a_clean_environment(extra, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *EXTRAS[extra]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and any(word in done.stderr for word in ("Retrying", "Connection", "timed out")):
        pytest.skip(f"no package index can be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "model.pth").write_bytes(safe_io.dump_tensors({"w": torch.ones(2)}))
    code = f"import sys\nsys.path.insert(0, sys.argv[1])\n{USES[extra]}"
    done = subprocess.run(
        [python, "-c", code, str(ROOT), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
