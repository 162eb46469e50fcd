"""torchrun over two hosts whose cable is cut in the midst of training."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hold import Hold
from tests.cluster.hosts import ADDRESSES, PATH, Hosts
from tests.cluster.lab import ROOT, until

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
OPTIONS = ("stage=cnn_lstm", "trainer=smoke", "trainer.cross_fit_folds=0", "trainer.checkpoint_seconds=0", "device=cpu")
TORCHRUN = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=net")
MEETING = ("--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400")
LOST = "another process of this run died or cannot be reached"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the weights that two processes train on one host."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, str(ROOT / "train.py"), *OPTIONS, "device.processes=2"]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, capture_output=True, timeout=900)
    return weights(folder)


def environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": f"{ROOT}:{folder / 'hold'}", "OMP_NUM_THREADS": "1", "PATH": PATH}
    return os.environ | own | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "eth0"}


def weights(folder: Path) -> str:
    (path,) = folder.glob("models/cnn_lstm/metadata_v*.json")
    return str(json.loads(path.read_text())["weights_sha256"])


def train_until_the_cut(hosts: Hosts, folder: Path) -> list[subprocess.Popen[bytes]]:
    """One agent of torchrun on each host, both on a shared disk, with the cable cut in the midst of training.

    Logs are in `folder`/log0 and log1.
    """
    hold = Hold(folder)
    agents = []
    for number, (host, address) in enumerate(zip(hosts.hosts, ADDRESSES, strict=True)):
        own = [f"--local-addr={address}", f"--rdzv-conf=is_host={number == 0},join_timeout=120,read_timeout=120"]
        command = ["ip", "netns", "exec", host, sys.executable, *TORCHRUN, *MEETING, *own, str(ROOT / "train.py")]
        command += [*OPTIONS, "device.timeout_seconds=10"]
        with open(folder / f"log{number}", "wb") as log:
            agents.append(
                subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT)
            )
    until(lambda: hold.reached(2), "both to train")
    hosts.cut()
    hold.release()
    return agents


def ended(agents: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [agent.wait(timeout=900) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()


def logs(folder: Path) -> str:
    return "".join((folder / f"log{number}").read_text(errors="replace") for number in range(2))


def test_training_survives_a_cable_that_is_cut_and_comes_back(hosts: Hosts, tmp_path: Path, undisturbed: str) -> None:
    agents = train_until_the_cut(hosts, tmp_path)
    until(lambda: LOST in logs(tmp_path), "the cut to be noticed")
    hosts.heal()
    assert ended(agents) == [0, 0], logs(tmp_path)[-5000:]
    assert weights(tmp_path) == undisturbed
    (run,) = (tmp_path / "outputs/cnn_lstm").iterdir()
    assert not (run / "error.json").exists()


def test_a_cable_that_stays_cut_ends_the_training_with_an_error_that_says_so(
    hosts: Hosts, tmp_path: Path, undisturbed: str
) -> None:
    agents = train_until_the_cut(hosts, tmp_path)
    assert 0 not in ended(agents), logs(tmp_path)[-5000:]
    (run,) = (tmp_path / "outputs/cnn_lstm").iterdir()
    error = json.loads((run / "error.json").read_text())
    assert error["error"] == "PeerLostError"
    assert LOST in error["message"]
    python, *arguments = shlex.split(error["resume"])  # in as many processes, here
    assert python == "python"
    local = environment(tmp_path) | {"GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=local, check=True, capture_output=True, timeout=900)
    assert weights(tmp_path) == undisturbed
