"""What the process and its GPU use."""

import resource
import sys

import torch


def system_metrics() -> dict[str, float]:
    """memory_bytes of this process; of the current GPU gpu_memory_bytes and, where NVML tells it, gpu_utilisation
    (percent of the last sampling period in which a kernel ran)."""
    values = {"memory_bytes": float(resident_bytes())}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        values["gpu_memory_bytes"] = float(torch.cuda.memory_allocated())
        utilisation = gpu_utilisation()
        if utilisation is not None:
            values["gpu_utilisation"] = utilisation
    return values


def resident_bytes() -> int:
    """Memory that is resident now on Linux; the largest so far elsewhere."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_utilisation() -> float | None:
    """None without NVML's Python binding (nvidia-ml-py), which PyTorch asks."""
    try:
        return float(torch.cuda.utilization())
    except (ImportError, RuntimeError):
        return None
