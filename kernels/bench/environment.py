"""What a result was measured on: card, driver, versions, clocks, commit. Everything is asked for, nothing is set."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch", "triton", "numpy", "diffusers", "torchao", "sageattention", "fastvideo-kernel", "comfy-kitchen",
)  # fmt: skip
QUERY = (
    "name", "driver_version", "memory.total", "power.limit", "clocks.sm", "clocks.mem", "clocks.max.sm",
    "clocks.max.mem", "temperature.gpu", "persistence_mode", "mig.mode.current",
)  # fmt: skip


def header(standin: bool) -> dict:
    """Return everything that a reader needs to trust or repeat a result."""
    import torch

    result: dict = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        **commit(),
    }
    if standin or not torch.cuda.is_available():
        return {**result, "card": "stand-in" if standin else "none", "cudnn": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        **result,
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": nvidia_smi(),
    }


def version(package: str) -> str:
    """Return the installed version of a package, from its metadata or itself, or 'not installed'."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    for entry in sys.path:
        # A trimmed wheel on the path has no metadata of its own.
        if entry and (Path(entry) / package.replace("-", "_")).is_dir():
            return "present, version unknown"
    return "not installed"


def nvidia_smi() -> dict[str, str]:
    """Return what nvidia-smi says about the first card; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    # One field that a driver does not know fails the whole question, so the short list is asked for then.
    for fields in (QUERY, QUERY[:2]):
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.SubprocessError):
            return {}
        if done.returncode == 0 and done.stdout.strip():
            return dict(zip(fields, (value.strip() for value in done.stdout.splitlines()[0].split(","))))
    return {}


def commit() -> dict:
    """Return ``commit`` and ``dirty`` of the repository this file is in; FPS_COMMIT names it where git cannot."""
    named = os.environ.get("FPS_COMMIT")
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "."],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {"commit": named or "unknown", "dirty": None}
    # Results and pages change while measuring; the code under test is what counts.
    paths = [line[3:] for line in changed.stdout.splitlines()]
    return {"commit": done.stdout.strip(), "dirty": any(path.endswith((".py", ".toml")) for path in paths)}


def card_name() -> str:
    """Return a short name of the card for file names, asked of nvidia-smi so that torch need not be imported."""
    name = nvidia_smi().get("name", "no-card")
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
