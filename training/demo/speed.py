"""How fast the attention alone is at a size where sparsity pays, on the device at hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ...kernels.attention import fps_attention, resolve_backend
from ...kernels.grid import TokenGrid
from ...kernels.plan import plans_for
from ...kernels.schedule import Schedule

GRID = TokenGrid(8, 32, 32)
HEADS, DIM = 4, 128
SCHEDULE = "0.00 fp8 x1 all 50% 40%"


def attention_speed(device: torch.device, repeats: int = 2) -> str:
    """Return one sentence: seconds of a dense and of a sparse FP8 attention call on 8,192 tokens."""
    plan = plans_for(Schedule.parse(SCHEDULE), GRID, HEADS).at(0.5, device=device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, GRID.tokens, HEADS, DIM, generator=generator).to(device, dtype) for _ in range(3))
    backend, _ = resolve_backend("auto", device, dtype, DIM, "fp8")

    def dense() -> None:
        torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    with torch.no_grad():
        sparse_seconds = _best(lambda: fps_attention(q, k, v, plan), repeats, device)
        dense_seconds = _best(dense, repeats, device)
    ratio = dense_seconds / sparse_seconds
    return (
        f"{GRID.tokens:,} tokens, {HEADS} heads, {plan.density:.0%} density, everything included: dense "
        f"{dense_seconds * 1e3:.0f} ms, FP8 + sparse {sparse_seconds * 1e3:.0f} ms ({ratio:.1f}x; "
        f"{backend} against torch's scaled_dot_product_attention, {device.type}, {torch.get_num_threads()} threads)"
    )


def _best(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats + 1):  # the first call warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
