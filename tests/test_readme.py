"""Every command of the README does what it says. `make demo` is in test_clone.py, `make test` runs this file."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLE = ROOT / "trade_agent/data/sample/us_daily.csv.gz"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


def with_smoke_profile(command: str) -> str:
    """The same command with the profile for tests: the README's own runs take minutes each."""
    if "trainer=" in command or "--cfg" in command or "train" not in command.split()[1]:
        return command
    if command.startswith("trade-agent") and " -- " not in command:
        return f"{command} -- trainer=smoke"
    return f"{command} trainer=smoke"


def test_the_readme_has_the_commands_these_tests_know() -> None:
    assert len(commands()) == 29
    assert {command.split()[0] for command in commands()} == {"python", "trade-agent"}
    assert "python train.py stage=hybrid model=sac" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(tmp_path: Path) -> None:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        frame = pd.read_csv(file)
    frame[frame["Ticker"] == "IBM"].drop(columns="Ticker").to_csv(tmp_path / "prices.csv", index=False)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    demo = ["python train.py stage=hybrid model=sac trainer=smoke"]
    for command in demo + [with_smoke_profile(command) for command in commands()]:
        line = command.replace("python train.py", f"python {ROOT / 'train.py'}")
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        if "train" in command.split()[1] and "--cfg" not in command and "-m" not in command.split():
            last = done.stdout.strip().splitlines()[-1]
            assert re.fullmatch(
                r"model_id: \w+_v\d+\.\d+\.\d+_grade_[A-F][+-]?_(acc|sharpe)_m?\d+\.\d+|best trial \d+: .*", last
            )
    for block, first_words in zip(blocks("python"), ("cnn_lstm_v", "equity "), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert re.search(f"^{first_words}", done.stdout, flags=re.MULTILINE)
