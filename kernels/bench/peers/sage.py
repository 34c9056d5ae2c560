"""SageAttention 1.0.6: dense, INT8 Q and K, in Triton."""

from __future__ import annotations

from ..problem import Problem
from . import TOLERANCE_8, Prepared, missing


class Sage:
    """``sageattn`` in token order; it smooths K in place, so it gets a copy of its own."""

    name, family = "sage1", "dense8"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.density != 100:
            return "dense: compared in the dense cells"
        if problem.backward:
            return "has no backward"
        if absent := missing("sageattention"):
            return absent
        return None if problem.device.type == "cuda" else "needs a CUDA card"

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        from sageattention import sageattn

        q, k, v = problem.leaves()
        return Prepared(
            lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD", is_causal=False), (q, k.clone(), v), None,
            lambda out: out, 1.0, TOLERANCE_8, problem.full(),
        )  # fmt: skip


ALL = [Sage()]
