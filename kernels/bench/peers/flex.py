"""FlexAttention with the same block mask: inputs already in tile order, compiled on a card."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from ...plan import AttentionPlan
from ..problem import Problem
from . import TOLERANCE_16, Prepared, from_tiles, in_tiles

SLOTS = 128


class Flex:
    """Torch's FlexAttention on tiles of 128 rows: a block of its mask is a tile of ours."""

    name, family = f"flex-{SLOTS}", "sparse"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        try:
            from torch.nn.attention import flex_attention  # noqa: F401
        except ImportError:
            return "not installed (this torch has no FlexAttention)"
        if problem.device.type != "cuda" and problem.backward:
            return "its backward does not run on a CPU"
        return None

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        plan = problem.plan(SLOTS, "bf16")
        compiled = problem.device.type == "cuda"
        mask, run = block_mask(plan, SLOTS, compiled), _flex(compiled)
        inputs = tuple(in_tiles(x.detach(), plan, SLOTS).requires_grad_(problem.backward) for x in problem.leaves())
        grad = in_tiles(problem.grad, plan, SLOTS) if problem.backward else None
        return Prepared(
            lambda q, k, v: run(q, k, v, block_mask=mask), inputs, grad,
            lambda out: from_tiles(out, plan, SLOTS), plan.density, TOLERANCE_16, plan,
            notes={"layout": "tile order in and out, not part of the time"},
        )  # fmt: skip


@cache
def _flex(compiled: bool) -> Callable[..., torch.Tensor]:
    """Return FlexAttention, compiled or not."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def block_mask(plan: AttentionPlan, slots: int, compiled: bool) -> object:
    """Return the plan's lists as a BlockMask; only key tiles with dead rows ask its mask function.

    Uncompiled, FlexAttention reads the mask function alone, so that must know the lists as well.
    """
    from torch.nn.attention.flex_attention import BlockMask

    ids, count, live = plan.lists.ids[0], plan.lists.count[0], plan.layout.live
    tiles = live.shape[0]
    seen = torch.zeros(tiles, tiles, dtype=torch.bool, device=ids.device)
    used = torch.arange(ids.shape[1], device=ids.device)[None] < count[:, None]
    rows = torch.arange(tiles, device=ids.device)[:, None].expand_as(ids)
    seen[rows[used], ids[used].long()] = True
    whole = (live == slots)[None]

    def listed(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.argsort(mask.int(), dim=-1, descending=True, stable=True)
        return mask.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]

    same = plan.layout.uniform if plan.layout.uniform == plan.layout.last else 0

    def is_live(b, h, q, k):
        # A constant where all tiles are alike: a look into a table would slow the kernel for nothing.
        return k % slots < same if same else k % slots < live[k // slots]

    def is_seen(b, h, q, k):
        return seen[q // slots, k // slots] & is_live(b, h, q, k)

    rule = is_live if compiled else is_seen

    return BlockMask.from_kv_blocks(*listed(seen & ~whole), *listed(seen & whole), BLOCK_SIZE=slots, mask_mod=rule)


ALL = [Flex()]
