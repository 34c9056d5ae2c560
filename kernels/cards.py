"""The device that attention runs on, by the name that a calibration knows it by. Nothing asks a driver on import."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

import torch


def card_name(device: torch.device | str) -> str:
    """Return the name of ``device``: the card's own, or the processor's with the threads that torch takes."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU {_processor()}, {threads} thread{'s' if threads != 1 else ''}"
    return device.type


@lru_cache(maxsize=1)
def _processor() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())[:100]
    except OSError:
        pass
    return (platform.processor() or platform.machine() or "unknown")[:100]


@lru_cache(maxsize=8)
def driver_version(device: torch.device) -> str | None:
    """Return the NVIDIA driver's version for ``device``, or None where nvidia-smi does not tell."""
    from .bench import environment

    if device.type != "cuda" or torch.version.hip:
        return None
    return environment.nvidia_smi(environment.uuid(device)).get("driver_version")


def runtime() -> str:
    """Return what torch was built for: 'CUDA 12.8', 'ROCm 6.4', or 'CPU only'."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
