"""What this installation is and can do, in lines that can be copied into a question; and what to do about it.

Every part is asked for on its own: one that fails costs its line and nothing else. No folder of the user's is named but
the calibration's.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

import torch

from ..kernels import cards
from ..kernels.attention import BackendError, backends, choose_backend, forget_backends
from ..kernels.calibration import Calibration, calibration_path
from ..kernels.calibration_file import shown
from .host import HEAD_DIM, MINIMUM_HOST, default_dtype, host_attention, host_device, host_version

# The first release with what the kernels need: descriptors made on the host.
TRITON = (3, 4)
_LETTER = r"[^\s\\/:'\"(),;<>]"
# From a drive, the root or the home folder down to the last folder.
_PATH = re.compile(rf"(?:[A-Za-z]:\\|(?<![\w.:/~<-])/)(?:{_LETTER}+[\\/])+|~(?:{_LETTER}*[\\/])+")


@dataclass
class Report:
    """Lines for people, and the steps that follow from them."""

    lines: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def add(self, what: str, ask: Callable[[], str | list[str]]) -> None:
        """Add what ``ask`` says under the name ``what``, or that it could not be told."""
        try:
            said = ask()
        except Exception as error:  # the very thing that is broken may be asked about here
            said = f"could not be told ({type(error).__name__}: {first_line(error)})"
        first, *more = [said] if isinstance(said, str) else said or ["-"]
        self.lines.append(f"{what:<12} {scrub(first)}")
        self.lines += [f"{'':<12} {scrub(line)}" for line in more]

    def do(self, step: str) -> None:
        """Add a step to take, once."""
        if step not in self.steps:
            self.steps.append(step)


def scrub(text: str) -> str:
    """Return ``text`` with the folders of paths left out."""
    home = os.path.expanduser("~")
    if len(home) > 1:
        # By name, because it may hold spaces, at which the pattern gives up.
        text = text.replace(home, "~").replace(home.replace("\\", "/"), "~").replace(repr(home)[1:-1], "~")
    return _PATH.sub(".../", text)


def first_line(error: BaseException) -> str:
    """Return the first line of what ``error`` says."""
    return next(iter(str(error).strip().splitlines()), "no message")[:200]


def environment(report: Report) -> None:
    """Add versions, card, backends and calibration to ``report``."""
    report.add("pack", lambda: f"fpsattention {pack_version()}")
    report.add("ComfyUI", lambda: _host(report))
    report.add("Python", lambda: f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    report.add("torch", lambda: f"{torch.__version__}, {cards.runtime()}")
    report.add("device", lambda: _device(report))
    report.add("Triton", lambda: _triton(report))
    report.add("attention", lambda: f"{host_attention()[0]} is the host's own, which dense steps run")
    report.lines.append("")
    # What was missing may have been installed meanwhile.
    forget_backends()
    for attention in ("fp8", "bf16"):
        report.add(f"{attention} steps", lambda attention=attention: _backends(report, attention))
    report.lines.append("")
    # The one path that is told, with ~ for the home folder, goes past the scrubbing.
    where = calibration_path()
    report.lines.append(f"{'calibration':<12} {shown(where)}")
    report.add("", lambda: _calibration(report))


def pack_version() -> str:
    """Return the pack's version, from its root file under whatever name the host gave the pack."""
    root = sys.modules.get(__package__.rpartition(".")[0])
    found = getattr(root, "__version__", None)
    if found is None:
        from pathlib import Path

        text = (Path(__file__).parent.parent / "__init__.py").read_text(encoding="utf-8")
        found = re.search(r'__version__ = "([^"]+)"', text).group(1)
    return found


def _host(report: Report) -> str:
    version = host_version()
    if version is None:
        return "its version cannot be told"
    if version < MINIMUM_HOST:
        report.do(f"Update ComfyUI to {'.'.join(map(str, MINIMUM_HOST))} or newer.")
    try:
        frontend = metadata.version("comfyui-frontend-package")
    except metadata.PackageNotFoundError:
        frontend = "of unknown version"
    return f"{'.'.join(map(str, version))}, frontend {frontend}"


def _device(report: Report) -> list[str]:
    device = host_device()
    if device.type != "cuda":
        slow = "only the slow reference runs" if device.type == "cpu" else "attention stays dense"
        report.do(
            f"ComfyUI computes on {device.type}, where {slow}: for speed it needs an NVIDIA card and a torch that is "
            "built for CUDA, and must not be started with --cpu."
        )
        return [f"{device}: {cards.card_name(device)}"]
    major, minor = torch.cuda.get_device_capability(device)
    free, total = torch.cuda.mem_get_info(device)
    driver = cards.driver_version(device)
    lines = [
        f"{device}: {cards.card_name(device)}, compute capability {major}.{minor}"
        + (f", driver {driver}" * bool(driver)),
        f"{total / 2**30:.1f} GiB memory, {free / 2**30:.1f} GiB free now",
    ]
    if torch.version.hip:
        report.do("AMD cards are not supported by the kernels yet: backend auto leaves attention dense on this card.")
    elif (major, minor) < (8, 0):
        report.do(
            "This card is older than the kernels' oldest (Ampere, compute capability 8.0): backend auto leaves "
            "attention dense on it."
        )
    return lines


def _triton(report: Report) -> str:
    found = {}
    for name in ("triton", "triton-windows"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    windows = platform.system() == "Windows"
    package = "triton-windows" if windows else "triton"
    needed = ".".join(map(str, TRITON))
    wants = host_device().type == "cuda"
    command = f'pip install -U "{package}>={needed}"' + (
        " (portable ComfyUI: python_embeded\\python.exe -m pip install ...)" if windows else ""
    )
    if not found:
        if wants:
            report.do(f"Install Triton in ComfyUI's Python and restart: {command}")
        return "not installed"
    version = next(iter(found.values()))
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if wants and numbers < TRITON:
        report.do(f"Update Triton to {needed} or newer, with the torch that goes with it: {command}")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _backends(report: Report, attention: str) -> list[str]:
    device = host_device()
    dtype = default_dtype(device)
    table = backends(device, dtype, HEAD_DIM, attention)
    what = f"(head dimension {HEAD_DIM}, {str(dtype)[6:]})"
    try:
        taken, note = choose_backend("auto", device, dtype, HEAD_DIM, attention)
    except BackendError as error:
        taken, note = None, str(error)
    lines = [f"auto takes {taken} {what}" if taken else f"auto leaves them dense {what}: {note}"]
    for name, reason in table:
        lines.append(f"  {name:<12} {'can run' if reason is None else reason}")
        if reason and "C compiler" in reason:
            report.do(
                "Triton needs a C compiler and Python's headers: install build-essential and python3-dev (Linux), or "
                "the newest triton-windows, which brings its own (Windows); then restart ComfyUI."
            )
    if device.type == "cuda" and taken is None:
        report.do(
            "Until a Triton backend can run, nothing gets faster here: backend auto leaves attention dense, and the "
            "reference, which runs when it is named, is slower than that."
        )
    return lines


def _calibration(report: Report) -> list[str]:
    calibration = Calibration.load()
    card = cards.card_name(host_device())
    ours = [entry for entry in calibration.entries if entry["card"] == card]
    lines = [calibration.problem] if calibration.problem else []
    lines.append(f"{len(calibration.entries)} measurements, {len(ours)} of this device")
    for entry in sorted(ours, key=lambda entry: entry["measured"])[-10:]:
        points = ", ".join(f"{density:.0%} {ms:.4g}" for density, ms in entry["points"])
        dense = "" if entry["dense_ms"] is None else f"; dense {entry['dense_ms']:.4g} ({entry['dense_backend']})"
        lines.append(
            f"  {entry['measured'][:10]} {entry['backend']}, {entry['tokens']:,} tokens, heads {entry['heads']} x "
            f"{entry['head_dim']}: ms at {points}{dense}"
        )
    if not ours:
        report.do("Run FPSAttention Benchmark once on this device: then editor and preview tell expected seconds.")
    return lines
