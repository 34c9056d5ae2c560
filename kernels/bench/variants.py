"""Every kernel variant that is checked before a card sees it: a name, the cards it is for, and how to launch it.

A variant goes through the same dispatch as a real call, on tensors without data (device ``meta``) of a real shape, so
whatever the launchers decide (blocks, warps, descriptors, formats) is what gets compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from ..attention import dispatch, make_spec
from ..attention.spec import Spec
from ..grid import TokenGrid
from ..plan import Plans
from ..schedule import Schedule
from .recording import Launch, recording

GRIDS = {
    "720p": TokenGrid(21, 45, 80),  # 1280x720, 81 frames: every tile has the same number of live tokens
    "480p": TokenGrid(21, 30, 52),  # 832x480, 81 frames
    "49 frames": TokenGrid(13, 30, 52),  # 832x480: a prime number of frames, so the tiles differ
}
WINDOW = "all 15 20"
FP8_CARDS = (89, 90, 100, 120)
INT8_CARDS = (80, 86)
ALL_CARDS = (80, 86, 89, 90, 100, 120)
HEADS = 40


@dataclass(frozen=True)
class Variant:
    """One call: a backend of the dispatch on a plan. ``window`` 'all all all' is dense."""

    name: str
    backend: str
    cards: tuple[int, ...]
    granularity: str | None = "x1"
    slots: int = 64
    window: str = WINDOW
    dim: int = 128
    grid: str = "720p"
    what: str = "forward"

    @property
    def attention(self) -> str:
        """The phase's attention in the schedule."""
        return "bf16" if self.granularity is None else "fp8"

    def spec(self) -> Spec:
        """Return what the op would be given."""
        return _spec(self.backend, self.attention, self.granularity, self.slots, self.window, self.grid)

    def launches(self, capability: int) -> list[Launch]:
        """Return what a card of ``capability`` would be asked to run for this call."""
        spec = self.spec()
        tokens = GRIDS[self.grid].tokens
        q, k, v = (torch.empty(1, tokens, HEADS, self.dim, dtype=torch.bfloat16, device="meta") for _ in range(3))
        with recording(capability) as launches:
            if self.what == "forward":
                dispatch.run_forward(self.backend, q, k, v, spec)
            else:
                stats = torch.empty(1, HEADS, tokens, device="meta")
                out, grad = torch.empty_like(q), torch.empty_like(q)
                dispatch.run_backward(self.backend, grad, q, k, v, out, stats, torch.empty_like(stats), spec)
        return launches


@lru_cache(maxsize=32)
def _spec(backend: str, attention: str, granularity: str | None, slots: int, window: str, grid: str) -> Spec:
    schedule = Schedule.parse(
        f"# fps-schedule v1, unit sigma\n0.00 {attention} {granularity or '-'} {window}\n",
    )
    plan = Plans(schedule, GRIDS[grid], HEADS, slots=slots).at(0.5, device="meta")
    return make_spec(plan, plan.lists, backend)


def _variants() -> list[Variant]:
    dense = "all all all"
    table = [
        Variant("fp8 x1 64", "triton-fp8", FP8_CARDS),
        Variant("fp8 x1 128", "triton-fp8", FP8_CARDS, slots=128),
        Variant("fp8 x1 dense", "triton-fp8", FP8_CARDS, window=dense),
        Variant("fp8 token 64", "triton-fp8", FP8_CARDS, "token"),
        Variant("fp8 token 128", "triton-fp8", FP8_CARDS, "token", slots=128),
        Variant("fp8 token dense", "triton-fp8", FP8_CARDS, "token", window=dense),
        Variant("fp8 x1 64 uneven", "triton-fp8", FP8_CARDS, grid="49 frames"),
        Variant("fp8 x1 64 D64", "triton-fp8", FP8_CARDS, dim=64),
        Variant("fp8 x1 dense D64", "triton-fp8", FP8_CARDS, window=dense, dim=64),
        Variant("int8 x1 64", "triton-int8", INT8_CARDS),
        Variant("int8 x1 128", "triton-int8", INT8_CARDS, slots=128),
        Variant("int8 x1 dense", "triton-int8", INT8_CARDS, window=dense),
        Variant("int8 token 64", "triton-int8", INT8_CARDS, "token"),
        Variant("int8 token 128", "triton-int8", INT8_CARDS, "token", slots=128),
        Variant("bf16 64", "triton-bf16", ALL_CARDS, None),
        Variant("bf16 128", "triton-bf16", ALL_CARDS, None, slots=128),
        Variant("bf16 dense", "triton-bf16", ALL_CARDS, None, window=dense),
        Variant("bf16 64 D64", "triton-bf16", ALL_CARDS, None, dim=64),
    ]
    return [variant for variant in table if variant.backend in dispatch.BACKENDS]


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _variants()}
