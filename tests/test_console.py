"""What wrong input prints and leaves behind."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from trade_agent.config.load import conf_dir
from trade_agent.config.store import register_schemas
from trade_agent.console import exit_code_of, hydra_job
from trade_agent.errors import ConfigError
from trade_agent.safe_io.locks import RUN


@pytest.mark.parametrize(
    ("folder", "others", "stays"), [("outputs/run", False, False), ("outputs/run", True, True), (".", False, True)]
)
def test_wrong_input_leaves_no_run_folder_but_never_removes_the_working_directory_or_the_run_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, others: bool, stays: bool
) -> None:
    work = tmp_path / "work"
    (work / folder / ".hydra").mkdir(parents=True)
    if others:  # which has not written more yet
        (work / folder / RUN).touch()
    monkeypatch.chdir(work)
    with pytest.raises(SystemExit) as ended, hydra_job(Path(folder), sweep=False):
        raise ConfigError("wrong")
    assert ended.value.code == 2
    assert work.is_dir()
    assert (work / folder / ".hydra").is_dir() is stays


def test_a_choice_that_hydra_cannot_find_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    register_schemas()

    def run() -> None:
        with initialize_config_dir(str(conf_dir())):
            compose("train", ["stage=rl", "model=saac"])

    assert exit_code_of(run) == 2
    assert (
        capsys.readouterr().err == "error: model=saac is not a choice; use one of cnn_lstm, ensemble, ppo, sac, td3\n"
    )


def test_a_file_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert exit_code_of((tmp_path / "none").read_text) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert str(tmp_path / "none") in line
    assert line.count("\n") == 1
