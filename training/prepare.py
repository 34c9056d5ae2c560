"""What happens between a checked configuration and the first step: the backend is asked, the data are cached."""

from __future__ import annotations

import logging

import torch

from ..kernels.attention import resolve_backend
from .config import RunConfig
from .distributed import World, pick_device
from .names import HEAD_DIM

_log = logging.getLogger(__name__)


def check_backend(config: RunConfig, world: World) -> None:
    """Ask every sparse phase's backend before anything is loaded, and say what runs in place of what.

    Raises BackendError when one cannot run: training never falls back to dense attention.
    """
    device = pick_device(config.device, world)
    dtype = torch.float32 if config.dtype == "fp32" else torch.bfloat16
    attention = config.attention.resolved()
    kinds = {phase.attention for phase in attention.schedule.phases if phase.attention != "dense"}
    for kind in sorted(kinds):
        name, note = resolve_backend(attention.backend, device, dtype, HEAD_DIM, kind)
        _log.info("%s attention runs on %s%s", kind, name, f": {note}" if note else "")
