"""comfy-kitchen: ComfyUI's own INT8 attention, dense and with top-k blocks at equal density."""

from __future__ import annotations

import torch

from ..problem import Problem
from ..timing import relative_error
from . import TOLERANCE_8, Prepared, from_tiles, in_tiles, missing

SLOTS = 64


class SolAttention:
    """``sol_attn``: each block of 64 queries attends to as many blocks of 64 keys as our lists hold, chosen by it."""

    name, family = "sol-attn-64", "sparse"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.density == 100:
            return "sparse: nothing to select in a dense cell"
        if problem.backward:
            return "has no backward"
        if problem.cell.dim != 128:
            return f"takes head dimension 128 only, not {problem.cell.dim}"
        if absent := missing("comfy_kitchen"):
            return absent
        import comfy_kitchen

        if not hasattr(comfy_kitchen, "sol_attn"):
            return "not installed (this comfy-kitchen has no sol_attn)"
        if not comfy_kitchen.sol_attn_is_available(problem.device):
            return "comfy-kitchen's compiled kernels do not run here"
        return None

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        import comfy_kitchen

        plan = problem.plan(SLOTS, "bf16")
        live = plan.layout.live.int().contiguous()
        count = float(plan.lists.count.double().mean())
        ratio = count / live.shape[0]
        inputs = tuple(in_tiles(x, plan, SLOTS).transpose(1, 2).contiguous() for x in problem.leaves())

        def forward(q, k, v):
            return comfy_kitchen.sol_attn(q, k, v, topk_ratio=ratio, tail=False, block_len=live)

        return Prepared(
            forward, inputs, None, lambda out: from_tiles(out.transpose(1, 2), plan, SLOTS), plan.density,
            TOLERANCE_8, check=lambda: self.small_error(problem.device),
            notes={
                "layout": "tile order in and out, not part of the time",
                "lists": f"its own top-k, {count:.0f} of {live.shape[0]} blocks; the query's own block may come on top",
                "check": "against comfy-kitchen's own plain implementation on 1,024 tokens",
            },
        )  # fmt: skip

    @staticmethod
    def small_error(device: torch.device) -> float:
        """Return its relative L2 against its own plain implementation on a small problem."""
        import comfy_kitchen
        from comfy_kitchen.backends.eager.sol_attn import sol_attn as plain

        generator = torch.Generator(device).manual_seed(0)
        q, k, v = (
            torch.randn(1, 1024, 2, 128, generator=generator, device=device).to(torch.bfloat16) for _ in range(3)
        )
        ours = comfy_kitchen.sol_attn(q, k, v, topk_ratio=0.25, tail=False)
        return relative_error(ours, plain(q, k, v, topk_ratio=0.25, tail=False))


class Int8Attention:
    """``int8_attention``: dense."""

    name, family = "kitchen-int8", "dense8"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.density != 100:
            return "dense: compared in the dense cells"
        if problem.backward:
            return "has no backward"
        if absent := missing("comfy_kitchen"):
            return absent
        try:
            from comfy_kitchen.sage_attention import int8_attention, is_available  # noqa: F401
        except ImportError as error:
            return f"not installed (this comfy-kitchen has no int8_attention: {error})"
        if problem.device.type != "cuda" or not is_available(problem.device):
            return "comfy-kitchen's compiled kernels do not run here"
        return None

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        from comfy_kitchen.sage_attention import int8_attention

        inputs = tuple(x.transpose(1, 2) for x in problem.leaves())
        return Prepared(
            lambda q, k, v: int8_attention(q, k, v), inputs, None, lambda out: out.transpose(1, 2), 1.0, TOLERANCE_8,
            problem.full(),
        )  # fmt: skip


ALL = [SolAttention(), Int8Attention()]
