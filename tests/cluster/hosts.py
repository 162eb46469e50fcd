"""Two hosts on one machine: network namespaces, joined by a switch whose cable to the second can be pulled."""

import os
import shutil
import subprocess

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
ADDRESSES = ("10.214.0.1", "10.214.0.2")


def ip(*arguments: str) -> None:
    """Raises CalledProcessError with what `ip` says."""
    subprocess.run(["ip", *arguments], env={"PATH": PATH}, check=True, capture_output=True, text=True, timeout=300)


class Hosts:
    """Up from the call of `connect` to that of `remove`, under names that nobody else has."""

    def __init__(self) -> None:
        self.switch, *self.hosts = (f"trade-agent-{os.getpid()}-{name}" for name in ("switch", "a", "b"))

    def connect(self) -> str:
        """Why there can be no such hosts here; empty where they are up."""
        if not shutil.which("ip", path=PATH):
            return "not installed: ip (apt-get install iproute2)"
        try:
            self._connect()
        except subprocess.CalledProcessError as error:
            return f"no network namespaces here: {error.stderr.strip()}"
        return ""

    def _connect(self) -> None:
        for name in (self.switch, *self.hosts):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        for number, (name, address) in enumerate(zip(self.hosts, ADDRESSES, strict=True)):
            port = f"port{number}"
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self.switch)
            ip("-n", self.switch, "link", "set", port, "master", "switch", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            # How long a dead connection is kept: a quarter of an hour as it comes, during which torchrun's agent on a
            # lost host does not end. This is about two minutes.
            ip("netns", "exec", name, "sh", "-c", "echo 8 > /proc/sys/net/ipv4/tcp_retries2")

    def cut(self) -> None:
        """Frames vanish; both ends keep their carrier, as behind a switch."""
        ip("-n", self.switch, "link", "set", "port1", "nomaster")

    def heal(self) -> None:
        ip("-n", self.switch, "link", "set", "port1", "master", "switch")

    def remove(self) -> None:
        for name in (*self.hosts, self.switch) if shutil.which("ip", path=PATH) else ():
            subprocess.run(["ip", "netns", "delete", name], env={"PATH": PATH}, capture_output=True, timeout=300)
