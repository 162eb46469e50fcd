import pytest

from tests.safe_io.corpus import corpus


@pytest.fixture(scope="session")
def canary(tmp_path_factory):
    """A file that must never come into being."""
    path = tmp_path_factory.mktemp("canary") / "canary"
    yield path
    assert not path.exists(), "code from a file was run"


@pytest.fixture(scope="session")
def hostile(canary):
    """All hostile files."""
    return corpus(canary)
