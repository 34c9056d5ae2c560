"""SageAttention, whichever version is installed: dense, INT8 Q and K; version 1 is in Triton."""

from __future__ import annotations

from ..environment import version
from ..problem import Problem
from . import TOLERANCE_8, Prepared, missing


class Sage:
    """``sageattn`` in token order; it smooths K in place, so it gets a copy of its own."""

    family = "dense8"

    @property
    def name(self) -> str:
        """'sage', with the installed version: 1 and 2 are different kernels."""
        found = version("sageattention")
        return f"sage-{found}" if found[0].isdigit() else "sage"

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
