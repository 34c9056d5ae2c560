"""SpargeAttn (package spas_sage_attn): block-sparse attention with INT8 Q and K and FP8 P and V, compiled CUDA."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ...patterns import density
from ...plan import AttentionPlan, BlockLists
from ..problem import Problem
from . import TOLERANCE_8, Prepared, missing

SLOTS = 128


class Sparge:
    """``block_sparse_sage2_attn_cuda`` with lists of the cell's density.

    It knows no dead rows inside the sequence, so it gets the tokens of our tile order in runs of 128 without any; a run
    sees what the tile in its middle sees. Nearly the same pairs as ours, and its own exact density.
    """

    name, family = f"sparge-{SLOTS}", "sparse"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.density == 100:
            return "sparse: nothing to select in a dense cell"
        if problem.backward:
            return "has no backward"
        if absent := missing("spas_sage_attn"):
            return absent
        return None if problem.device.type == "cuda" else "needs a CUDA card"

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        from spas_sage_attn import block_sparse_sage2_attn_cuda

        plan, mask = runs_of(problem.plan(SLOTS, "bf16"))
        order = plan.layout.index.reshape(-1)
        order = order[order >= 0]
        back = torch.argsort(order)
        blocks = block_map(mask, len(order), torch.cuda.get_device_capability(problem.device) == (9, 0))
        blocks = torch.from_numpy(blocks).to(problem.device, torch.int8)
        blocks = blocks.expand(problem.cell.batch, problem.cell.heads, -1, -1).contiguous()
        inputs = tuple(x[:, order].transpose(1, 2).contiguous() for x in problem.leaves())
        return Prepared(
            lambda q, k, v: block_sparse_sage2_attn_cuda(q, k, v, mask_id=blocks), inputs, None,
            lambda out: out.transpose(1, 2)[:, back], plan.density, TOLERANCE_8, plan,
            notes={
                "layout": "tile order in and out, not part of the time",
                "lists": "those of the nearest of our tiles, on runs of 128 tokens without dead rows",
            },
        )  # fmt: skip


def runs_of(plan: AttentionPlan) -> tuple[AttentionPlan, np.ndarray]:
    """Return a plan on runs of 128 live tokens of ``plan``'s tile order, and its mask ``(runs, runs)``."""
    index, live = plan.layout.index.cpu(), plan.layout.live.cpu().numpy()
    order = index[index >= 0]
    starts = np.arange(0, len(order), SLOTS)
    lengths = np.minimum(SLOTS, len(order) - starts)
    middle = np.searchsorted(np.cumsum(live), starts + lengths // 2, side="right")
    ids, count = plan.lists.ids[0].cpu().numpy(), plan.lists.count[0].cpu().numpy()
    seen = np.zeros((len(live), len(live)), dtype=bool)
    for row, (listed, used) in enumerate(zip(ids, count)):
        seen[row, listed[:used]] = True
    mask = seen[np.ix_(middle, middle)]
    runs = torch.full((len(starts) * SLOTS,), -1, dtype=index.dtype)
    runs[: len(order)] = order
    device = plan.layout.index.device
    layout = dataclasses.replace(
        plan.layout,
        index=runs.view(-1, SLOTS).to(device),
        live=torch.from_numpy(lengths.astype(np.int32)).to(device),
        cube=torch.arange(len(starts), device=device),
        cubes=len(starts),
        uniform=SLOTS if len(starts) > 1 else int(lengths[-1]),
        last=int(lengths[-1]),
    )
    lists = BlockLists.from_masks(mask[None], plan.lists.pattern_of_head.cpu().numpy() * 0, device)
    return dataclasses.replace(plan, layout=layout, lists=lists, density=float(density(mask, lengths))), mask


def block_map(mask: np.ndarray, tokens: int, hopper: bool) -> np.ndarray:
    """Return ``mask`` of runs of 128 as its blocks: 64 queries by 128 keys on Hopper, 128 by 64 elsewhere."""
    axis = 0 if hopper else 1
    short = -(-tokens // 64)
    halves = np.repeat(mask, 2, axis=axis)
    return halves[:short] if hopper else halves[:, :short]


ALL = [Sparge()]
