"""Runs every kernel of ours once on small shapes: what compute-sanitizer watches.

With GPU_STANDIN=1 TRITON_INTERPRET=1 two of them run in Triton's interpreter, to try this file itself.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fpsattention.kernels.attention import backends, fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.msfp import ops
from fpsattention.kernels.msfp.formats import FloatFormat
from fpsattention.kernels.msfp.inputs import InputQuantizer
from fpsattention.kernels.msfp.packing import packed_width
from fpsattention.kernels.msfp.weights import PackedWeight, WeightFormat
from fpsattention.kernels.plan import AttentionPlan, BlockLists, Plans
from fpsattention.kernels.schedule import Schedule

GRIDS = (TokenGrid(3, 7, 9, 5, 3), TokenGrid(2, 8, 8))
ROWS = ("fp8 x1 all 50% 50%", "fp8 x2 all 50% 50%", "fp8 token all 50% 50%", "fp8 x1 all all all", "bf16 - all 50% 50%")
HEADS, DIM = 2, 128
DEVICE = "cuda"
if os.environ.get("GPU_STANDIN") == "1":
    from fpsattention.kernels.bench import standin

    standin.prepare()
    DEVICE, GRIDS, ROWS = "cpu", (TokenGrid(1, 3, 5),), (ROWS[0], ROWS[-1])


def main() -> None:
    """Run every backend that can: one sample; and two samples of strided views with lists of their own, one empty."""
    for grid in GRIDS:
        for row in ROWS:
            for slots in (64, 128):
                plan = Plans(Schedule.parse(f"0.00 {row}"), grid, HEADS, slots=slots).at(0.5, device=DEVICE)
                for name, reason in backends(DEVICE, torch.bfloat16, DIM, plan.attention):
                    if reason is None and name != "reference":
                        run(name, plan, *(normal(1, grid.tokens, HEADS, DIM) for _ in range(3)))
                        run(name, per_sample(plan), *views(2, grid.tokens))
                        print(f"{name}: {row}, {slots} slots, {grid.tokens} tokens", flush=True)
    for form in ("e2m1", "ue2m2", "e2m3", "e4m3"):
        packed_layers(FloatFormat.parse(form))
        print(f"packed layers in {form}", flush=True)


def packed_layers(form: FloatFormat) -> None:
    """Run the kernels of packed layers on sizes that no block divides: few rows and many, inputs static and dynamic."""
    rows, columns = 33, 72
    packed = WeightFormat(form, 24)
    codes = torch.randint(0, 256, (rows, packed_width(columns, form.bits)), device=DEVICE, dtype=torch.uint8)
    scale = torch.ones(packed.scale_shape(rows, columns), device=DEVICE)
    weight = PackedWeight(codes, scale, None if form.signed else scale, packed, columns)
    for mode in ("static", "dynamic"):
        for tokens in (1, 17, 99):
            ops.linear(normal(tokens, columns), weight, normal(rows), InputQuantizer(form, mode, 1.0))
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def run(name: str, plan: AttentionPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Run forward and backward of a backend and wait for the device."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = fps_attention(*leaves, plan, backend=name)
    out.backward(torch.randn_like(out))
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def normal(*shape: int) -> torch.Tensor:
    """Return random numbers in bf16."""
    return torch.randn(shape, device=DEVICE).bfloat16()


def views(batch: int, tokens: int) -> list[torch.Tensor]:
    """Return q, k, v ``(batch, tokens, HEADS, DIM)`` as views of one tensor that end inside it: a joint projection,
    and rows beyond the last token."""
    joint = normal(batch, tokens + 3, 3, HEADS, DIM)
    return [joint[:, :tokens, i] for i in range(3)]


def per_sample(plan: AttentionPlan) -> AttentionPlan:
    """Return ``plan`` for two samples whose heads see different tiles: the first tile alone, every second one, all,
    and nothing in one row of tiles and from one column on."""
    tiles = plan.layout.index.shape[0]
    masks = np.zeros((4, tiles, tiles), dtype=bool)
    masks[0, :, 0] = True
    masks[1, :, ::2] = True
    masks[2] = True
    masks[3, : tiles // 2] = True
    heads = np.array([[0, 1], [2, 3]])
    return dataclasses.replace(plan, lists=BlockLists.from_masks(masks, heads, DEVICE))


if __name__ == "__main__":
    main()
