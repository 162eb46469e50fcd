from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trade_agent.data.bars import Bars
from trade_agent.data.load import load_bars, validate_file
from trade_agent.data.validation import ValidationReport

DEFAULTS: dict[str, Any] = {
    "source": "csv",
    "path": None,
    "symbols": [],
    "start": None,
    "end": None,
    "columns": {},
    "time_format": None,
    "timezone": "UTC",
    "symbol_column": None,
    "delimiter": None,
    "calendar": None,
    "price_side": "mid",
    "adjust": True,
    "policies": {},
    "interval": None,
    "exchange": None,
}


@pytest.fixture
def load() -> Callable[..., tuple[Bars, ValidationReport]]:
    """load_bars with every argument that a test does not name at its default."""
    return lambda **changes: load_bars(**{**DEFAULTS, **changes})


@pytest.fixture
def validate() -> Callable[..., ValidationReport]:
    return lambda **changes: validate_file(**{**DEFAULTS, **changes})


@pytest.fixture
def load_text(tmp_path: Path, load: Any) -> Callable[..., tuple[Bars, ValidationReport]]:
    """Writes the text to a file and loads it."""

    def run(text: str, name: str = "ACME.csv", **changes: Any) -> tuple[Bars, ValidationReport]:
        path = tmp_path / name
        path.write_text(text)
        return load(path=str(path), **changes)

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared/data"
    if not folder.is_dir():
        pytest.skip(f"the real market files are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_load(shared_data: Path) -> Callable[..., tuple[Bars, ValidationReport]]:
    """Loads a real file with defaults, once a session."""
    known: dict[tuple[str, str], tuple[Bars, ValidationReport]] = {}

    def run(path: str, source: str = "csv") -> tuple[Bars, ValidationReport]:
        key = (path, source)
        if key not in known:
            known[key] = load_bars(**{**DEFAULTS, "source": source, "path": str(shared_data / path)})
        return known[key]

    return run
