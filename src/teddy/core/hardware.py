"""What a measurement was made with, for records that are read on other machines."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from teddy.core.files import Json

_PACKAGES = ("torch", "torchvision", "torch-pruning", "numpy", "pillow")


def describe() -> Json:
    """Processor, memory, GPUs and versions of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * size / 2**30, 1),
        "gpus": gpus,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def processor() -> str:
    """Its marketing name where Linux tells it, with the widest vector instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    entries = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in entries.items()}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
