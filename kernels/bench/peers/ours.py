"""Ours: the op as a model calls it, token order in and out, quantization included."""

from __future__ import annotations

from dataclasses import dataclass

from ...attention import backends, fps_attention, make_spec
from ...attention.dispatch import FP8_FORM
from ...quantize.traffic import traffic
from ..problem import Problem
from . import TOLERANCE_16, Prepared

# The kernel and the reference round the same numbers; a weight that rounds the other way moves little.
TOLERANCE_FP8 = 2e-2


@dataclass(frozen=True)
class Ours:
    """One of our backends on tiles of ``slots`` rows."""

    backend: str
    attention: str
    slots: int
    family: str = "ours"

    @property
    def name(self) -> str:
        """The backend and its slots."""
        return f"{self.backend}-{self.slots}"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.density == 100 and self.slots != 128:
            return "a full list runs on plain runs of 128 tokens, as the other one does"
        if self.backend == "reference" and problem.device.type == "cuda":
            return "the reference is what others are checked against"
        return dict(backends(problem.device, problem.dtype, problem.cell.dim, self.attention)).get(
            self.backend, f"there is no backend {self.backend}"
        )

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        plan = problem.plan(self.slots, self.attention)

        def forward(q, k, v):
            return fps_attention(q, k, v, plan, backend=self.backend)

        form = FP8_FORM[self.backend] if self.attention == "fp8" else "none"
        tolerance = TOLERANCE_16 if form == "none" else TOLERANCE_FP8
        return Prepared(forward, problem.leaves(), problem.grad, lambda out: out, plan.density, tolerance, plan, form)


def quantizer_bytes(problem: Problem, contestant: Ours, prepared: Prepared) -> int:
    """Return the bytes that quantization reads and writes in one forward call of ``contestant``."""
    spec = make_spec(prepared.plan, prepared.plan.lists_for(problem.q, problem.k, problem.v), contestant.backend)
    return traffic(problem.q, spec).moved


ALL = [
    Ours("triton-fp8", "fp8", 128),
    Ours("triton-fp8", "fp8", 64),
    Ours("triton-bf16", "bf16", 128),
    Ours("triton-bf16", "bf16", 64),
    Ours("triton-int8", "fp8", 128),
    Ours("reference", "fp8", 64),
]
