"""Dense attention of torch: cuDNN forced, FlashAttention-2 forced, and whatever torch picks by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from ..problem import Problem
from . import TOLERANCE_16, Prepared

# Measured in every cell, so that a ratio comes from one process; the others are compared once, in the dense cells.
IN_EVERY_CELL = ("cudnn", "fa2")


def picked(call: Callable[[], object]) -> str:
    """Return what runs inside ``call``: torch's attention operator, or its longest kernel's name."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    events = record.key_averages()
    operators = sorted(
        event.key.removeprefix("aten::")
        for event in events
        if event.key.startswith("aten::_") and "attention" in event.key and "fused" not in event.key
    )
    kernels = [event for event in events if getattr(event, "device_time_total", 0) and "::" not in event.key]
    longest = max(kernels, key=lambda event: event.device_time_total).key[:120] if kernels else ""
    names = [name for name in operators if name != "_scaled_dot_product_attention"] or operators
    return ", ".join(filter(None, [names[0] if names else "", longest])) or "unknown"


@dataclass(frozen=True)
class Dense:
    """Torch's attention with one backend forced, or none; ``contiguous`` copies into (B, H, S, D) beforehand."""

    name: str
    backend: SDPBackend | None
    contiguous: bool = False
    family: str = "dense"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        cpu = problem.device.type != "cuda"
        if self.backend is SDPBackend.CUDNN_ATTENTION and cpu:
            return "needs a CUDA card"
        if problem.cell.density != 100 and self.name not in IN_EVERY_CELL and not (cpu and self.name == "sdpa"):
            return "dense: compared in the dense cells"
        return None

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        views = [x.detach().transpose(1, 2) for x in problem.leaves()]
        inputs = tuple((x.contiguous() if self.contiguous else x).requires_grad_(problem.backward) for x in views)

        def forward(q, k, v):
            if self.backend is None:
                return scaled_dot_product_attention(q, k, v)
            with sdpa_kernel(self.backend):
                return scaled_dot_product_attention(q, k, v)

        grad = problem.grad.transpose(1, 2) if problem.backward else None
        ready = Prepared(forward, inputs, grad, lambda out: out.transpose(1, 2), 1.0, TOLERANCE_16, problem.full())
        if self.backend is None:
            with torch.no_grad():
                ready.notes["picked"] = picked(lambda: forward(*inputs))
        return ready


ALL = [
    Dense("cudnn", SDPBackend.CUDNN_ATTENTION),
    Dense("fa2", SDPBackend.FLASH_ATTENTION),
    Dense("sdpa", None),
    Dense("cudnn-bhsd", SDPBackend.CUDNN_ATTENTION, contiguous=True),
]
