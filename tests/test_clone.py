"""What a stranger does first: a clean clone and the README's own commands; a wheel outside of any checkout."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(command: list[str], cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    # MAKE*: below a surrounding `make test-all`, make prints its directory around the output.
    own = {"PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    keep = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(command, cwd=cwd, env=keep | extra, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def test_make_demo_in_a_clean_clone_ends_with_three_registered_models(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(["git", "clone", "--quiet", str(ROOT), str(clone)], tmp_path)
    done = run(["make", "demo"], clone)
    assert done.stdout.strip().splitlines()[-1].startswith("model_id: hybrid_v1.0.0_grade_")
    assert "CPU build" in done.stdout or "configured index" in done.stdout or "GPU found" in done.stdout
    command = clone / ".venv/bin/trade-agent"
    models = json.loads(run([str(command), "list", "--json"], clone).stdout)
    assert [model["type"] for model in models] == ["cnn_lstm", "hybrid", "sac"]
    run([str(command), "registry", "verify"], clone)
    assert run(["git", "status", "--porcelain"], clone).stdout == ""


def test_a_wheel_works_outside_its_checkout(tmp_path: Path) -> None:
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)], tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    environment = tmp_path / "venv"
    # The libraries of this interpreter, so that only the project itself is installed anew.
    venv.create(environment, with_pip=True)
    site = next(environment.glob("lib/python*/site-packages"))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    run([str(environment / "bin/pip"), "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    where = run([str(environment / "bin/python"), "-c", "import trade_agent; print(trade_agent.__file__)"], work).stdout
    assert str(environment) in where
    command = str(environment / "bin/trade-agent")
    done = run([command, "train", "hybrid", "--model", "sac", "--", "trainer=smoke"], work)
    assert done.stdout.strip().splitlines()[-1].startswith("model_id: hybrid_v1.0.0_grade_")
    assert [entry["type"] for entry in json.loads(run([command, "list", "--json"], work).stdout)] == [
        "cnn_lstm",
        "hybrid",
        "sac",
    ]
    sweep = ["train", "cnn-lstm", "--optimize", "--", "trainer=smoke", "hydra.sweeper.n_trials=1"]
    assert run([command, *sweep], work).stdout.splitlines()[-1].startswith("best trial 0: ")
