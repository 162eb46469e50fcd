"""`python train.py` as a shell sees it: the main job, its second run, its refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def train(*overrides: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def result_of(folder: Path, stage: str) -> dict:
    """The newest result of a stage."""
    return json.loads(sorted((folder / "outputs" / stage).iterdir())[-1].joinpath("result.json").read_text())


def test_help_imports_no_torch(tmp_path: Path) -> None:
    """Hydra leaves the process once it has printed: what was imported till then is looked at on the way out."""
    code = "import atexit, runpy, sys\n"
    code += "atexit.register(lambda: print('torch imported:', 'torch' in sys.modules))\n"
    code += f"sys.argv = ['train.py', '--help']; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stage" in done.stdout
    assert done.stdout.endswith("torch imported: False\n")


@pytest.mark.parametrize("spelling", ["-m", "--multirun", "--multi", "hydra.mode=MULTIRUN"])
def test_a_sweep_under_torchrun_is_refused_in_every_spelling(tmp_path: Path, spelling: str) -> None:
    done = train(spelling, "seed=1,2", cwd=tmp_path, WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "use: python train.py -m device.processes=2 seed=1,2" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.gama=0.9"], ["no option model.gama"]),
        (["+model.gama=0.9"], ["did you mean model.gamma?"]),
        (["stage=cnn_lstm", "model=sac"], ["cannot be trained with model=sac"]),
        (["data=csv", "data.path=nowhere.csv"], ["nowhere.csv"]),
        (["data.symbols=[FB]"], ["FB has 196 bars, at least 900"]),
        (["upstream.missing=error"], ["cnn_lstm, sac", "upstream.missing=train"]),
        (["device.name=cuda", "device.strict=true"], ["device.name=cuda"]),
        (["preprocessing.steps=[{name: rsi, params: {perod: 3}}]"], ["perod"]),
        (["grading.trading.criteria=[]"], ["grading.trading"]),
        (["not an override"], ["not an override"]),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_files(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    done = train(*overrides, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in last
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_secret_of_the_environment_is_written_anywhere(tmp_path: Path) -> None:
    secret = "s3cr3t-of-the-shell"
    overrides = ["stage=cnn_lstm", "trainer=smoke", "trainer.cross_fit_folds=0", "notes='${oc.env:API_TOKEN}'"]
    done = train(*overrides, "tags=['${oc.env:API_TOKEN}']", cwd=tmp_path, API_TOKEN=secret)
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    [log] = tmp_path.rglob("train.log")
    assert log.read_text(encoding="utf-8").count("plateau cannot fire in cnn_lstm") == 1  # kept once, and by us
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_the_main_job_trains_three_stages_and_the_second_run_only_the_hybrid(tmp_path: Path) -> None:
    first = train("stage=hybrid", "model=sac", "trainer=smoke", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "not in the registry (models): cnn_lstm, sac" in first.stderr
    assert "plan: cnn_lstm -> sac -> hybrid_sac" in first.stderr
    assert first.stdout.splitlines()[-1].startswith("model_id: hybrid_v1.0.0_grade_")
    second = train("stage=hybrid", "model=sac", "trainer=smoke", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "reuse cnn_lstm_v1.0.0" in second.stderr
    assert "reuse sac_v1.0.0" in second.stderr
    assert "training sac" not in second.stderr
    assert second.stdout.splitlines()[-1].startswith("model_id: hybrid_v1.0.1_grade_")
    runs = sorted((tmp_path / "outputs/hybrid").iterdir())
    metrics = [json.loads((run / "result.json").read_text())["metrics"] for run in runs]
    assert metrics[0] == metrics[1]
    assert (runs[0] / "upstream/cnn_lstm/result.json").is_file()
    assert not (runs[1] / "upstream").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "sac", "td3"])
def test_the_same_seed_gives_the_same_result_in_two_fresh_processes(tmp_path: Path, algorithm: str) -> None:
    results = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        done = train("stage=hybrid", f"model={algorithm}", "trainer=smoke", cwd=folder)
        assert done.returncode == 0, done.stderr
        models = sorted((folder / "models" / "hybrid").glob("metadata_v*.json"))
        results.append((result_of(folder, "hybrid"), json.loads(models[0].read_text())["weights_sha256"]))
    (one, weights_one), (two, weights_two) = results
    assert one["metrics"] == two["metrics"]
    assert one["report"] == two["report"]
    assert weights_one == weights_two
    other = tmp_path / "c"
    other.mkdir()
    assert train("stage=hybrid", f"model={algorithm}", "trainer=smoke", "seed=2", cwd=other).returncode == 0
    assert result_of(other, "hybrid")["metrics"] != one["metrics"]
