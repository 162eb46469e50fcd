"""The project as a stranger has it: a wheel, installed outside of any checkout."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(command: list[str], cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """What a command of a stranger's shell prints; raises AssertionError with it where that fails."""
    # MAKE*: below a surrounding `make test-all`, make prints its directory around the output.
    own = {"PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    keep = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(command, cwd=cwd, env=keep | extra, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def install_wheel(folder: Path) -> Path:
    """The `bin` of a new environment in `folder`, with the wheel and the libraries of this interpreter."""
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], folder)
    wheel = next(folder.glob("*.whl"))
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    site = next(environment.glob("lib/python*/site-packages"))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    run([str(environment / "bin/pip"), "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], folder)
    where = run(
        [str(environment / "bin/python"), "-c", "import trade_agent; print(trade_agent.__file__)"], folder
    ).stdout
    assert str(environment) in where
    return environment / "bin"
