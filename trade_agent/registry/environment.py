"""Where a model was made: interpreter, libraries, machine and state of the source code."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

LIBRARIES = ("trade-agent", "torch", "torchrl", "tensordict", "numpy", "pandas", "scikit-learn", "hydra-core", "TA-Lib")


# An installed package may lie inside somebody else's checkout, whose commit says nothing about it.
CHECKOUT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> bytes | None:
    if not ((CHECKOUT / ".git").exists() and (CHECKOUT / "train.py").is_file()):
        return None
    try:
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def describe_environment() -> dict[str, str]:
    """Return names and versions as text, as they were when this process first asked.

    ``git_commit`` is "unknown" outside a git checkout; ``git_diff_sha256`` is the digest of the changes that are not
    committed, and empty without any. Imports none of the libraries.
    """
    result = {"python": platform.python_version(), "platform": platform.platform(), "host": platform.node()}
    for name in LIBRARIES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "not installed"
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    result["git_commit"] = commit.decode().strip() if commit else "unknown"
    result["git_diff_sha256"] = hashlib.sha256(diff).hexdigest() if diff else ""
    return result
