"""What the nodes ask of the host outside its node API: version, device, attention, memory, cancel.

Without a host the answers are torch's own.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)

MINIMUM_HOST = (0, 11, 0)
# Every Wan's.
HEAD_DIM = 128


def host_device() -> torch.device:
    """Return the device that the host computes on; the processor where there is no host."""
    try:
        from comfy.model_management import get_torch_device
    except ImportError:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(get_torch_device())


def default_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which the host runs Wan on ``device``: bfloat16 where the card has it."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip else torch.float16


def host_attention() -> tuple[str, Any]:
    """Return name and function of the host's own attention as ``function(q, k, v, heads)``; torch's without a host."""
    try:
        from comfy.ldm.modules import attention
    except ImportError:
        from ..kernels.contestants import torch_attention

        return "torch", torch_attention
    function = attention.optimized_attention
    return getattr(function, "__name__", "optimized_attention"), lambda q, k, v, heads: function(q, k, v, heads=heads)


def make_room(size: int, device: torch.device) -> None:
    """Let the host unload models until ``size`` bytes are free on ``device``, if they are not."""
    if device.type == "cpu":
        return
    try:
        from comfy.model_management import free_memory, soft_empty_cache
    except ImportError:
        return
    free_memory(size, device)
    soft_empty_cache()


def stop_if_canceled() -> None:
    """Raise the host's own exception where the user canceled the prompt."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return
    throw_exception_if_processing_interrupted()


def current_card() -> str | None:
    """Return the name of the device that the host computes on, as a calibration knows it; None without one."""
    from ..kernels.cards import card_name

    try:
        return card_name(host_device())
    except Exception as error:  # a driver that fails in any way must cost nobody more than this name
        logger.debug("FPSAttention cannot tell the card: %s", error)
        return None


def current_backends() -> dict[str, str | None] | None:
    """Return what backend auto takes on the host's device for fp8 and bf16 steps of Wan, None for what stays dense;
    None as a whole where it cannot be told."""
    from ..kernels.attention import chosen_backends

    try:
        device = host_device()
        return chosen_backends(device, default_dtype(device), HEAD_DIM)
    except Exception as error:  # as above
        logger.debug("FPSAttention cannot tell what runs here: %s", error)
        return None


def host_version() -> tuple[int, ...] | None:
    """Return the host's version as numbers, or None where it cannot be told."""
    try:
        from comfyui_version import __version__

        return tuple(int(part) for part in __version__.split("+")[0].split(".")[:3])
    except (ImportError, ValueError):
        return None
