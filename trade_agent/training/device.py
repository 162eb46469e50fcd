"""Choice of device and threads, and what the machine has."""

import os
import resource
import sys
from dataclasses import dataclass

import torch

from trade_agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """device: torch name. reason: why it was chosen. memory_bytes: of the device (or the host). threads: intra-op."""

    device: str
    name: str
    reason: str
    memory_bytes: int
    threads: int


class DeviceManager:
    """Picks cuda or cpu and the number of threads, and says what it chose and why.

    name: auto, cpu or cuda. strict: refuse a device that is not there instead of falling back to the CPU.
    threads: 0 takes one per core that this process may use.
    Raises ConfigError when strict and the device is absent.
    """

    def __init__(self, *, name: str = "auto", strict: bool = False, threads: int = 0) -> None:
        self.device, self.reason = self._choose(name, strict)
        self.threads = threads or available_cores()
        torch.set_num_threads(self.threads)

    def _choose(self, name: str, strict: bool) -> tuple[torch.device, str]:
        # Not mps: money is float64, which it does not have.
        present = {"cuda": torch.cuda.is_available(), "cpu": True}
        if name == "auto":
            chosen = next(kind for kind, there in present.items() if there)
            return torch.device(chosen), "the best device present" if chosen != "cpu" else "no GPU present"
        if present[name]:
            return torch.device(name), "as configured"
        if strict:
            raise ConfigError(f"device.name={name} but there is none here", "use device=auto or device.strict=false")
        print(f"warning: device.name={name} but there is none here; using the CPU", file=sys.stderr)
        return torch.device("cpu"), f"fallback: no {name} here"

    def report(self) -> DeviceReport:
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            name, memory = properties.name, properties.total_memory
        else:
            name, memory = self.device.type, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return DeviceReport(str(self.device), name, self.reason, memory, self.threads)

    def memory_used_bytes(self) -> int:
        """Peak memory so far: of the device on CUDA, of this process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_cores() -> int:
    """Cores that this process may run on, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
