"""Choice of device, precision and threads, and what the machine has."""

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass

import torch

from trade_agent.errors import ConfigError

TF32_CAPABILITY = (8, 0)  # Ampere
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """device: torch name. reason: why it was chosen. precision: of float32 products. memory_bytes: of the device (or
    the host). threads: intra-op."""

    device: str
    name: str
    reason: str
    precision: str
    memory_bytes: int
    threads: int


class DeviceManager:
    """Picks cuda or cpu, the precision and the number of threads, and says what it chose and why.

    name: auto, cpu, cuda or mps. strict: refuse a device that cannot be used instead of falling back to the CPU.
    precision: of products of float32 matrices, convolutions and LSTMs; auto, float32 or tf32 (10 bits of mantissa, on
    GPUs that have it). threads: 0 takes one per core that this process may use, its share where there are several.
    Raises ConfigError when strict and the device or the precision is not to be had.
    """

    def __init__(self, *, name: str = "auto", strict: bool = False, precision: str = "auto", threads: int = 0) -> None:
        self.device, self.reason = self._choose(name, strict)
        self.precision = self._set_precision(precision, strict)
        self.threads = threads_of_each(threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(self.threads)
        keep_freed_memory()

    def _choose(self, name: str, strict: bool) -> tuple[torch.device, str]:
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        if name == "auto":
            if cuda:
                return torch.device("cuda"), "the best device present"
            return torch.device("cpu"), "mps has no float64, in which money is kept" if mps else "no GPU present"
        if name == "cpu" or (name == "cuda" and cuda):
            return torch.device(name), "as configured"
        what = "but mps has no float64, in which money is kept" if name == "mps" else "but there is none here"
        if strict:
            raise ConfigError(f"device.name={name} {what}", "use device=auto or device.strict=false")
        print(f"warning: device.name={name} {what}; using the CPU", file=sys.stderr)
        return torch.device("cpu"), "fallback: mps has no float64" if name == "mps" else f"fallback: no {name} here"

    def _set_precision(self, wanted: str, strict: bool) -> str:
        """Set what torch is to use, for the whole process, and return its name."""
        possible = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= TF32_CAPABILITY
        if wanted == "tf32" and not possible:
            if strict:
                raise ConfigError(
                    f"device.precision=tf32 but {self.device.type} here has none", "use device.precision=auto"
                )
            print(
                f"warning: device.precision=tf32 but {self.device.type} here has none; using float32", file=sys.stderr
            )
        tf32 = possible and wanted != "float32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        return "tf32" if tf32 else "float32"

    def fall_back(self) -> None:
        """Use the CPU from here on, because the work did not fit the memory of the device."""
        self.reason = f"fallback: out of memory on {self.device.type}"
        self.device = torch.device("cpu")
        self.precision = self._set_precision("float32", strict=False)

    def report(self) -> DeviceReport:
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            name, memory = properties.name, properties.total_memory
        else:
            name, memory = self.device.type, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return DeviceReport(str(self.device), name, self.reason, self.precision, memory, self.threads)

    def memory_used_bytes(self) -> int:
        """Peak memory so far: of the device on CUDA, of this process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its memory comes from glibc.

    By default glibc gives the end of the heap back as soon as a few megabytes of it are free. What one update frees the
    next one asks for again, and the system hands it out anew page by page: 7 % of a SAC update of networks of
    [256, 256]. Thresholds that the environment sets are left alone.
    """
    if platform.libc_ver()[0] == "glibc" and not {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # where its own adaptive threshold ends, too
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


def available_cores() -> int:
    """Cores that this process may run on, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def threads_of_each(threads: int, processes: int) -> int:
    """Threads of one of the processes on this host; 0 divides the cores among them."""
    return threads or max(available_cores() // processes, 1)
