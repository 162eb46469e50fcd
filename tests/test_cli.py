"""The `trade-agent` command as a shell sees it."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from trade_agent.cli import main; main()"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one forecaster that the command trained."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train", "cnn-lstm", "--", "trainer=smoke", "trainer.cross_fit_folds=0", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("python train.py stage=cnn_lstm trainer=smoke trainer.cross_fit_folds=0\n")
    assert done.stdout.splitlines()[-1].startswith("model_id: cnn_lstm_v1.0.0_grade_")
    return folder


def test_list_and_info_print_json_and_nothing_else(trained: Path) -> None:
    listed = json.loads(run("list", "--json", cwd=trained).stdout)
    assert [model["type"] for model in listed] == ["cnn_lstm"]
    info = json.loads(run("info", "cnn_lstm@latest", "--json", cwd=trained).stdout)
    assert info["model_id"] == listed[0]["id"]
    assert info["command"].startswith("python train.py stage=cnn_lstm")


def test_list_and_info_print_tables(trained: Path) -> None:
    assert "cnn_lstm_v1.0.0" in run("list", cwd=trained).stdout
    shown = run("info", "cnn_lstm", cwd=trained).stdout
    assert "directional_accuracy" in shown
    assert "capped at" in shown


def test_verify_finds_a_flipped_bit_and_exits_with_1(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "models", tmp_path / "models")
    assert run("registry", "verify", cwd=tmp_path).returncode == 0
    model = next((tmp_path / "models/cnn_lstm").glob("*.pth"))
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(content)
    done = run("registry", "verify", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert any(model.name in finding["path"] for finding in json.loads(done.stdout))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["info", "sac@latest"], ["sac@latest"]),
        (["train", "sac", "nowhere.csv"], ["nowhere.csv is not a file"]),
        (["train", "sac", "--cnn-lstm-model", "cnn_lstm@9"], ["cnn_lstm@9"]),
        (["train", "hybrid", "--model", "dqn"], ["--model dqn", "ppo, sac, td3"]),
        (["train", "cnn-lstm", "--", "trainer.epochs=3"], ["trainer.epochs"]),
        (["train", "ensemble", "--models", "hybrid@1"], ["ensemble of 1", "min_members=2"]),
        (["list", "--type", "dqn"], ["dqn"]),
        (["registry", "scan", "nowhere"], ["there is no nowhere"]),
        (["registry", "verify", "--signatures", "always"], ["always", "off, sign, require"]),
        (["import", "nowhere.pth"], ["nowhere.pth"]),
        (["reproduce", "sac@1"], ["sac@1"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(trained: Path, arguments: list[str], parts: list[str]) -> None:
    before = sorted(path.name for path in trained.rglob("*"))
    done = run(*arguments, cwd=trained)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line = done.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    for part in parts:
        assert part in line
    assert sorted(path.name for path in trained.rglob("*")) == before


def test_signed_models_verify_and_unsigned_ones_do_not(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the extra signing")
    shutil.copytree(trained / "models", tmp_path / "models")
    keys = ("--keys", str(tmp_path / "keys"))
    required = ("registry", "verify", "--signatures", "require", *keys)
    missing = run(*required, cwd=tmp_path)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "trade-agent registry keygen" in missing.stderr
    assert run("registry", "keygen", *keys, cwd=tmp_path).returncode == 0
    assert run(*required, cwd=tmp_path).returncode == 1
    assert run("registry", "sign", "cnn_lstm@1", *keys, cwd=tmp_path).stdout.endswith("metadata_v1.0.0.sig\n")
    assert run(*required, "--deep", cwd=tmp_path).returncode == 0
    # A run that must sign asks for its key before it trains.
    done = run(
        "train", "cnn-lstm", "--", "trainer=smoke", "registry.signing=sign", "registry.keys=nowhere", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "no trusted key" in done.stderr


def test_scan_says_what_is_plain_data(trained: Path, tmp_path: Path) -> None:
    models = trained / "models/cnn_lstm"
    good = run("registry", "scan", str(models), "--json", cwd=tmp_path)
    assert good.returncode == 0, good.stdout
    assert {verdict["kind"] for verdict in json.loads(good.stdout)} == {"checkpoint", "arrays", "json"}
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    bad = run("registry", "scan", "evil.pth", cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stdout.startswith("REFUSED")


def test_a_model_moves_to_another_registry_and_a_foreign_one_is_no_parent(trained: Path, tmp_path: Path) -> None:
    model = next((trained / "models/cnn_lstm").glob("*.pth"))
    done = run("import", str(model), cwd=tmp_path)
    assert done.stdout.startswith("model_id: cnn_lstm_v1.0.0_grade_"), done.stderr
    assert run("registry", "verify", "--deep", cwd=tmp_path).returncode == 0
    torch.save({"weight": torch.ones(2)}, tmp_path / "old.pth")
    (tmp_path / "old.json").write_text("{}")
    assert run("import", "old.pth", "--type", "cnn_lstm", "--config", "old.json", cwd=tmp_path).returncode == 0
    done = run("train", "sac", "--cnn-lstm-model", "cnn_lstm@2", "--", "trainer=smoke", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    assert "imported without a training contract" in done.stderr


@pytest.mark.slow
def test_an_imported_model_is_a_parent(trained: Path, tmp_path: Path) -> None:
    assert run("import", str(next((trained / "models/cnn_lstm").glob("*.pth"))), cwd=tmp_path).returncode == 0
    done = run("train", "sac", "--cnn-lstm-model", "cnn_lstm@1", "--", "trainer=smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [parent["id"].split("_grade")[0] for parent in json.loads(
        run("info", "sac@1", "--json", cwd=tmp_path).stdout)["parents"]] == ["cnn_lstm_v1.0.0"]  # fmt: skip


def test_a_model_is_reproduced(trained: Path) -> None:
    before = sorted(path.name for path in trained.rglob("*"))
    done = run("reproduce", "cnn_lstm@1", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["weights_sha256"]["equal"] is True
    assert sorted(path.name for path in trained.rglob("*")) == before


def test_a_file_of_ones_own_is_validated(tmp_path: Path) -> None:
    rows = ["date,open,high,low,close,volume"]
    rows += [f"2020-01-{day:02},10,11,9,10.5,100" for day in range(1, 29)]
    rows[5] = "2020-01-05,10,9,11,10.5,100"  # high below low
    (tmp_path / "own.csv").write_text("\n".join(rows), encoding="utf-8")
    report = json.loads(run("data", "validate", "own.csv", "--json", cwd=tmp_path).stdout)
    assert report["rows_read"] == 28
    assert "high_below_low" in {finding["kind"] for finding in report["findings"]}
    assert "high_below_low" in run("data", "validate", "own.csv", cwd=tmp_path).stdout


def test_a_series_that_is_too_short_says_why(tmp_path: Path) -> None:
    rows = ["date,close"] + [f"2020-01-{day:02},{day}" for day in range(1, 29)]
    (tmp_path / "short.csv").write_text("\n".join(rows), encoding="utf-8")
    done = run("train", "sac", "short.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "28 bars, at least 900" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.csv"]


def test_listing_imports_no_torch(trained: Path) -> None:
    code = "import sys; sys.argv[1:] = ['list']; from trade_agent.cli import app; app(standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=trained, capture_output=True).returncode == 0
