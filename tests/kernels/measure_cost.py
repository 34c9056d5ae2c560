"""Prints, as JSON, what FP8 attention costs on this CPU at 8,192 tokens: memory, and time beside dense SDPA.

Run by test_cost.py in a process of its own, because a process' peak memory never falls again:
``python measure_cost.py WINDOW [--time]``.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from fpsattention.kernels.attention import fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans
from fpsattention.kernels.schedule import Schedule
from torch.nn.functional import scaled_dot_product_attention

GRID, HEADS, DIM = TokenGrid(8, 32, 32), 4, 128
ROUNDS = 3


def peak() -> int:
    """Return this process' peak memory in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tensors(grid: TokenGrid) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, grid.tokens, HEADS, DIM, generator=generator) for _ in range(4))
    return [*(x.requires_grad_() for x in (q, k, v)), grad]


def seconds(function, q, k, v, grad) -> tuple[float, float]:
    """Return the CPU time of a forward, and of forward and backward."""
    start = time.process_time()
    out = function(q, k, v)
    forward = time.process_time() - start
    torch.autograd.grad(out, (q, k, v), grad)
    return forward, time.process_time() - start


def main(window: str, timed: bool) -> dict:
    torch.set_num_threads(1)
    schedule = Schedule.parse(f"0.00 fp8 x1 {window}")
    small = TokenGrid(2, 8, 8)
    *inputs, grad = tensors(small)
    seconds(lambda *x: fps_attention(*x, Plans(schedule, small, HEADS).at(0.5)), *inputs, grad)

    plan = Plans(schedule, GRID, HEADS).at(0.5)
    *inputs, grad = tensors(GRID)
    four = 4 * inputs[0].numel() * inputs[0].element_size()  # q, k, v and the output
    before = peak()
    out = fps_attention(*inputs, plan)
    forward_peak = peak()
    torch.autograd.grad(out, inputs, grad)
    result = {
        "density": plan.density,
        "memory": {"forward": (forward_peak - before) / four, "both": (peak() - before) / four},
    }
    del out
    if not timed:
        return result
    heads_first = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in inputs]
    grad_first = grad.transpose(1, 2).contiguous()
    dense, times = [], []
    for _ in range(ROUNDS):
        dense.append(seconds(scaled_dot_product_attention, *heads_first, grad_first))
        times.append(seconds(lambda *x: fps_attention(*x, plan), *inputs, grad))
        best = {name: [min(pair) for pair in zip(*pairs)] for name, pairs in (("fp8", times), ("dense", dense))}
        if all(ours < 0.9 * theirs for ours, theirs in zip(best["fp8"], best["dense"])):
            break  # clear enough
    return {**result, "seconds": best}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], "--time" in sys.argv)))
