"""What a result was measured on: card, driver, versions, clocks, commit. Everything is asked for, nothing is set."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch", "triton", "numpy", "diffusers", "torchao", "sageattention", "fastvideo-kernel", "comfy-kitchen",
    "flash-attn-3", "flash-attn-4", "spas-sage-attn",
)  # fmt: skip
QUERY = (
    "name", "driver_version", "memory.total", "power.limit", "clocks.sm", "clocks.mem", "clocks.max.sm",
    "clocks.max.mem", "temperature.gpu", "persistence_mode", "mig.mode.current",
)  # fmt: skip
# What a card does while it works; older drivers know the last one by another name.
STATE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active")
OLD_STATE = (*STATE[:-1], "clocks_throttle_reasons.active")


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
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    return {
        **result,
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": nvidia_smi(uuid(device)),
    }


def uuid(device: Any) -> str | None:
    """Return the UUID of a CUDA device as nvidia-smi takes it; None where this torch does not tell."""
    import torch

    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if found is None else f"GPU-{found}"


def state(device: Any) -> dict[str, str]:
    """Return the clocks, power, temperature and throttle reasons of a CUDA device now; empty where nobody tells."""
    which = uuid(device)
    return _ask(which, STATE) or _ask(which, OLD_STATE) or _ask(which, STATE[:-1])


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


def nvidia_smi(which: str | None = None) -> dict[str, str]:
    """Return what nvidia-smi says about a card, by its UUID or number (None: the first one that CUDA may see); empty
    without it."""
    # One field that a driver does not know fails the whole question, so the short list is asked for then.
    return _ask(which, QUERY) or _ask(which, QUERY[:2])


def _ask(which: str | None, fields: tuple[str, ...]) -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        return {}
    which = which or os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    command = ["nvidia-smi", "-i", which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return {}
    if done.returncode or not done.stdout.strip():
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.splitlines()[0].split(","))))


def commit() -> dict:
    """Return ``commit``, ``dirty`` and ``changes`` of the repository this file is in; FPS_COMMIT names the commit where
    git cannot. ``changes`` is a short hash of what the kernels' code adds to the commit, None if nothing; where git
    cannot tell (``dirty`` is None), a hash of all their code."""
    named = os.environ.get("FPS_COMMIT")
    # Results and pages change while measuring; the code under test is what counts.
    code = ":(glob)kernels/**/*.py"
    try:
        head = _git("rev-parse", "--short=12", "HEAD").decode().strip()
        changed = _git("diff", "--no-ext-diff", "HEAD", "--", code)
        for name in sorted(_git("ls-files", "-z", "--others", "--exclude-standard", "--", code).split(b"\0")):
            if name:
                changed += name + b"\0" + (ROOT / os.fsdecode(name)).read_bytes()
    except (OSError, subprocess.SubprocessError):
        everything = b"".join(path.read_bytes() for path in sorted((ROOT / "kernels").rglob("*.py")))
        return {"commit": named or "unknown", "dirty": None, "changes": _short_hash(everything)}
    return {"commit": head, "dirty": bool(changed), "changes": _short_hash(changed) if changed else None}


def _short_hash(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:8]


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=30, check=True).stdout


def card_name() -> str:
    """Return a short name of the card for file names, asked of nvidia-smi so that torch need not be imported."""
    name = nvidia_smi().get("name", "no-card")
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
