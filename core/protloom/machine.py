"""What a measurement depends on besides the program: processor, threads, versions, allocator; never whose it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from protloom import __version__

SETTINGS = (
    "CUDA_LAUNCH_BLOCKING",
    "GLIBC_TUNABLES",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MALLOC_ARENA_MAX",
    "MALLOC_CONF",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Variables of the environment that change how fast the same program runs."""


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the machine as plain values: no name of a host or of a user, no path."""
    return {
        "cpu": processor(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": _physical_memory(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "protloom": __version__,
        "device": device.type,
        **(_gpu(device) if device.type == "cuda" else {}),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        # names alone: where libraries lie is nobody's business
        "preloaded": [Path(word).name for word in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()],
    }


def words(machine: dict[str, Any]) -> str:
    """Writes a description as a line."""
    cpu = f"{machine['cpu']}, {machine['threads']} threads on {machine['cores']} cores"
    where = f"{machine['gpu']} (CUDA {machine['cuda']}); {cpu}" if "gpu" in machine else cpu
    preloaded = f", with {', '.join(machine['preloaded'])}" if machine["preloaded"] else ""
    return f"{where}; torch {machine['torch']}{preloaded}"


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def processor() -> str:
    """Returns the model of the processor as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _gpu(device: torch.device) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(device)
    return {
        "gpu": about.name,
        "gpu_memory_bytes": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
    }
