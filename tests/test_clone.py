"""What a stranger does first: a clean clone and the README's own commands; a wheel outside of any checkout."""

import json
from pathlib import Path

import pytest

from tests.wheel import ROOT, install_wheel, run

pytestmark = pytest.mark.slow


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
    installed = install_wheel(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    command = str(installed / "trade-agent")
    done = run([command, "train", "hybrid", "--model", "sac", "--", "trainer=smoke"], work)
    assert done.stdout.strip().splitlines()[-1].startswith("model_id: hybrid_v1.0.0_grade_")
    assert [entry["type"] for entry in json.loads(run([command, "list", "--json"], work).stdout)] == [
        "cnn_lstm",
        "hybrid",
        "sac",
    ]
    sweep = ["train", "cnn-lstm", "--optimize", "--", "trainer=smoke", "hydra.sweeper.n_trials=1"]
    assert run([command, *sweep], work).stdout.splitlines()[-1].startswith("best trial 0: ")
