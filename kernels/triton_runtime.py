"""Where Triton kernels run: whether they can, for which card they are compiled, and the one place that launches them.

Importing this module imports no triton and asks no driver. The ahead-of-time check replaces :func:`launch` and
:func:`capability`, so it compiles exactly what a card would be given.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from typing import Any

import torch

# What the interpreter and tensors without data stand for: the code path of this card is what they take.
INTERPRETED_CAPABILITY = 90


def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter: the variable must be set before triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def available(device: torch.device | None = None) -> str | None:
    """Return None if the kernels can be launched (on ``device``, when given), else a short reason."""
    if device is not None and torch.device(device).type != "cuda" and not interpreted():
        return f"Triton kernels need a CUDA device, the tensors are on {torch.device(device).type}"
    # Searching the path takes longer than a plan's lookup, so only until triton is imported.
    if "triton" not in sys.modules and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        import triton
    except Exception as error:  # a broken triton fails in many ways, and none of them may reach the caller
        return f"triton cannot be imported ({_first_line(error)})"
    return None if interpreted() else _driver_reason(triton)


def _driver_reason(triton: Any) -> str | None:
    """Return why Triton's driver does not start: it compiles a little C when first asked, and a compiler or Python's
    headers may be missing. Better here, with a reason, than in the first step."""
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"triton cannot reach the card ({_first_line(error)}); it needs a C compiler and Python's headers"
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


@functools.cache
def _card(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def capability(device: torch.device) -> int:
    """Return the compute capability of ``device`` as one number, 90 for 9.0; where there is no card, a Hopper's."""
    if interpreted() or device.type != "cuda":
        return INTERPRETED_CAPABILITY
    return _card(torch.cuda.current_device() if device.index is None else device.index)


def launch(kernel: Any, grid: tuple[int, ...], tensor: torch.Tensor, *args: Any, **options: Any) -> None:
    """Launch ``kernel`` on ``grid`` with ``args``, on the device of ``tensor`` and the current stream there."""
    with torch.cuda.device_of(tensor):
        kernel[grid](*args, **options)
