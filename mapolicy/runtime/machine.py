"""The machine and the library versions that a result was measured with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

VERSIONED_PACKAGES = ("mapolicy", "torch", "torchvision", "timm", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, as bundles and result files record them."""
    return {"python": platform.python_version()} | {name: version(name) for name in VERSIONED_PACKAGES}


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine as it describes itself: CPU, cores, memory in GiB, system, and the GPU where `device` is one."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.system(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
