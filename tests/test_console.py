"""What wrong input leaves behind."""

from pathlib import Path

import pytest

from trade_agent.console import hydra_job
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
