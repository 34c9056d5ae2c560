"""Runs every kernel of ours once on small shapes: what compute-sanitizer watches.

With GPU_STANDIN=1 TRITON_INTERPRET=1 two of them run in Triton's interpreter, to try this file itself.
"""

from __future__ import annotations

import os

import torch
from fpsattention.kernels.attention import backends, fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans
from fpsattention.kernels.schedule import Schedule

GRIDS = (TokenGrid(3, 7, 9, 5, 3), TokenGrid(2, 8, 8))
ROWS = ("fp8 x1 all 50% 50%", "fp8 x2 all 50% 50%", "fp8 token all 50% 50%", "fp8 x1 all all all", "bf16 - all 50% 50%")
DEVICE = "cuda"
if os.environ.get("GPU_STANDIN") == "1":
    from fpsattention.kernels.bench import standin

    standin.prepare()
    DEVICE, GRIDS, ROWS = "cpu", (TokenGrid(1, 3, 5),), (ROWS[0], ROWS[-1])


def main() -> None:
    for grid in GRIDS:
        for row in ROWS:
            for slots in (64, 128):
                plan = Plans(Schedule.parse(f"0.00 {row}"), grid, 2, slots=slots).at(0.5, device=DEVICE)
                shape = (1, grid.tokens, 2, 128)
                for name, reason in backends(DEVICE, torch.bfloat16, 128, plan.attention):
                    if reason is None and name != "reference":
                        q, k, v = (torch.randn(shape, device=DEVICE).bfloat16().requires_grad_() for _ in range(3))
                        out = fps_attention(q, k, v, plan, backend=name)
                        out.backward(torch.randn_like(out))
                        if DEVICE == "cuda":
                            torch.cuda.synchronize()
                        print(f"{name}: {row}, {slots} slots, {grid.tokens} tokens", flush=True)


if __name__ == "__main__":
    main()
