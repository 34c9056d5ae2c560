"""What a run is: its configuration, machine and versions, kept beside its log so that a report can tell them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import replace_file
from .rates import peak_flops

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..distributed import World

NAME = "run.json"
PACKAGES = ("torch", "diffusers", "triton", "torchao", "transformers", "safetensors")

_log = logging.getLogger(__name__)


def about_run(config: RunConfig, world: World, device: torch.device, **facts: Any) -> dict[str, Any]:
    """Return the facts of a run: name, steps, configuration, device, processes, peak FLOP/s of all, versions."""
    peak = peak_flops(device)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "name": config.output.name,
        "steps": config.optim.steps,
        "dense_run": config.output.dense_run,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "processes": world.size,
        "peak_flops": None if peak is None else peak * world.size,
        "started": time.time(),
        "versions": versions,
        "schedule": config.attention.resolved().schedule.format(),
        "config": config.model_dump(mode="json"),
        **facts,
    }


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write the facts into a run's folder, whole or not at all; a disk that is full is only named."""
    try:
        replace_file(folder / NAME, (json.dumps(about, indent=1) + "\n").encode("utf-8"))
    except OSError as error:
        _log.warning("%s is not written: %s", folder / NAME, error)


def read_about(folder: Path) -> dict[str, Any]:
    """Return the facts of a run's folder; empty if it has none, or damaged ones."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
