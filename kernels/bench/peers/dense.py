"""Dense BF16 attention: torch's cuDNN, torch's FlashAttention-2 and what torch picks; FlashAttention-3 and -4."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from ..problem import Problem
from . import TOLERANCE_16, Prepared, missing

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


@dataclass(frozen=True)
class Flash:
    """FlashAttention-3 or -4 of its own package, in token order."""

    name: str
    module: str
    majors: tuple[int, ...]
    family: str = "dense"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if absent := missing(self.module):
            return absent
        if problem.device.type != "cuda":
            return "needs a CUDA card"
        major = torch.cuda.get_device_capability(problem.device)[0]
        cards = ", ".join(f"{known}.x" for known in self.majors)
        return None if major in self.majors else f"is for compute capability {cards}, not {major}.x"

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        attention = importlib.import_module(self.module).flash_attn_func

        def forward(q, k, v):
            out = attention(q, k, v)
            # Some versions return the log sums as well.
            return out[0] if isinstance(out, tuple) else out

        return Prepared(
            forward, problem.leaves(), problem.grad, lambda out: out, 1.0, TOLERANCE_16, problem.full()
        )  # fmt: skip


ALL = [
    Dense("cudnn", SDPBackend.CUDNN_ATTENTION),
    Dense("fa2", SDPBackend.FLASH_ATTENTION),
    Flash("fa3", "flash_attn_interface", (9,)),
    Flash("fa4", "flash_attn.cute", (9, 10, 11)),
    Dense("sdpa", None),
    Dense("cudnn-bhsd", SDPBackend.CUDNN_ATTENTION, contiguous=True),
]
