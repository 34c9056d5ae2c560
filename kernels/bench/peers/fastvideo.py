"""FastVideo's Triton kernels (package fastvideo-kernel, its Python files only): VSA's block-sparse and STA."""

from __future__ import annotations

from ...plan import AttentionPlan, Plans
from ...schedule import Schedule
from ..cells import STA_GRID
from ..problem import SIGMA, Problem
from . import TOLERANCE_16, Prepared, from_tiles, in_tiles, missing

SLOTS = 64
STA_TILE = (6, 8, 8)


def _unusable(problem: Problem) -> str | None:
    absent = missing("fastvideo_kernel")
    if absent:
        return absent
    # Its import asks for the driver's card.
    return None if problem.device.type == "cuda" else "needs a CUDA card, to be imported as well"


class Vsa:
    """VSA's block-sparse attention with our lists: tiles of 64 rows with their live counts."""

    name, family = "vsa-64-triton", "sparse"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.density == 100:
            return "sparse: nothing to select in a dense cell"
        return _unusable(problem)

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        from fastvideo_kernel import block_sparse_attn_from_indices

        plan = problem.plan(SLOTS, "bf16")
        batch, heads = problem.cell.batch, problem.cell.heads
        ids = plan.lists.ids.expand(batch, heads, -1, -1).contiguous()
        count = plan.lists.count.expand(batch, heads, -1).contiguous()
        inputs = tuple(in_tiles(x.detach(), plan, SLOTS).requires_grad_(problem.backward) for x in problem.leaves())
        return Prepared(
            lambda q, k, v: block_sparse_attn_from_indices(q, k, v, ids, count, plan.layout.live)[0], inputs,
            in_tiles(problem.grad, plan, SLOTS) if problem.backward else None,
            lambda out: from_tiles(out, plan, SLOTS), plan.density, 2 * TOLERANCE_16, plan,
            notes={"layout": "tile order in and out, not part of the time", "lists": "ours, given"},
        )  # fmt: skip


class Sta:
    """Sliding tile attention on the one canvas near Wan's that its Triton kernel takes."""

    name, family = "sta-384", "sparse"

    def reason(self, problem: Problem) -> str | None:
        """See ``Contestant.reason``."""
        if problem.cell.grid != STA_GRID:
            return "takes the token grid 18x48x80 only"
        if problem.backward:
            return "has no backward"
        return _unusable(problem)

    def prepare(self, problem: Problem) -> Prepared:
        """See ``Contestant.prepare``."""
        from fastvideo_kernel.triton_kernels.st_attn_triton import sliding_tile_attention_triton

        plan, tiles = sta_plan(problem)
        slots = STA_TILE[0] * STA_TILE[1] * STA_TILE[2]
        windows = [tiles] * problem.cell.heads
        shape = "x".join(map(str, STA_GRID))
        inputs = tuple(in_tiles(x.detach(), plan, slots) for x in problem.leaves())
        return Prepared(
            lambda q, k, v: sliding_tile_attention_triton(q, k, v, windows, 0, False, shape), inputs, None,
            lambda out: from_tiles(out, plan, slots), plan.density, 2 * TOLERANCE_16, plan,
            notes={"layout": "tile order in and out, not part of the time", "window": str(tiles)},
        )  # fmt: skip


def sta_plan(problem: Problem) -> tuple[AttentionPlan, tuple[int, int, int]]:
    """Return the plan of STA's nearest window (odd numbers of its tiles along every axis), and that window."""
    pieces = [n // tile for n, tile in zip(STA_GRID, STA_TILE)]
    total = pieces[0] * pieces[1] * pieces[2]
    odd = [range(1, n + 1, 2) for n in pieces]
    target = problem.cell.density / 100
    windows = [(t, h, w) for t in odd[0] for h in odd[1] for w in odd[2]]
    tiles = min(windows, key=lambda w: (abs(w[0] * w[1] * w[2] / total - target), -w[0], abs(w[1] - w[2])))
    words = " ".join(str(k * extent) for k, extent in zip(tiles, STA_TILE))
    slots = STA_TILE[0] * STA_TILE[1] * STA_TILE[2]
    schedule = Schedule.parse(f"0.00 bf16 - {words}")
    plans = Plans(schedule, problem.grid, problem.cell.heads, slots=slots, tile=STA_TILE)
    return plans.at(SIGMA, device=problem.device), tiles


ALL = [Vsa(), Sta()]
