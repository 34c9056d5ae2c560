"""Runs every kernel of ours once on small shapes: what compute-sanitizer watches."""

from __future__ import annotations

import torch
from fpsattention.kernels.attention import backends, fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans
from fpsattention.kernels.schedule import Schedule

GRIDS = (TokenGrid(3, 7, 9, 5, 3), TokenGrid(2, 8, 8))
ROWS = ("fp8 x1 all 50% 50%", "fp8 x2 all 50% 50%", "fp8 token all 50% 50%", "fp8 x1 all all all", "bf16 - all 50% 50%")


def main() -> None:
    for grid in GRIDS:
        for row in ROWS:
            for slots in (64, 128):
                plan = Plans(Schedule.parse(f"0.00 {row}"), grid, 2, slots=slots).at(0.5, device="cuda")
                shape = (1, grid.tokens, 2, 128)
                for name, reason in backends("cuda", torch.bfloat16, 128, plan.attention):
                    if reason is None and name != "reference":
                        q, k, v = (torch.randn(shape, device="cuda").bfloat16().requires_grad_() for _ in range(3))
                        out = fps_attention(q, k, v, plan, backend=name)
                        out.backward(torch.randn_like(out))
                        torch.cuda.synchronize()
                        print(f"{name}: {row}, {slots} slots, {grid.tokens} tokens", flush=True)


if __name__ == "__main__":
    main()
