"""What the card can do at most: bytes per second of a copy, and products per second in bf16 and fp8."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .timing import Clock, Timing, short


def measure(device: torch.device) -> dict:
    """Return TB/s of a device-to-device copy (bytes read plus written) and TFLOP/s of large products on random data."""
    clock = Clock(device)
    size, rows = (8192, 2**32) if clock.cuda else (256, 2**22)
    result: dict = {"status": "ok"}
    buffers = torch.randint(0, 255, (2, rows), dtype=torch.uint8, device=device)
    result["copy"] = _rate(clock, lambda: buffers[1].copy_(buffers[0]), 2.0 * rows / 1e12, "tb_per_s")
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    flops = 2.0 * size**3 / 1e12
    result["bf16"] = _rate(clock, lambda: a @ b, flops, "tflops")

    def fp8() -> Callable[[], object]:
        x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(x, y, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    try:
        result["fp8"] = _rate(clock, fp8(), flops, "tflops")
    except Exception as error:  # older cards have no such product
        result["fp8"] = {"status": "not run", "reason": short(error)}
    result["headline"] = ", ".join(
        f"{name} {row[unit]:.3g} {text}"
        for name, unit, text in (
            ("copy", "tb_per_s", "TB/s"),
            ("bf16", "tflops", "TFLOP/s"),
            ("fp8", "tflops", "TFLOP/s"),
        )
        if unit in (row := result[name])
    )
    return result


def _rate(clock: Clock, call: Callable[[], object], work: float, unit: str) -> dict:
    repeats = clock.repeats(call, 1.0, 50)
    timing = Timing.of(clock.sample(call, repeats))
    return {"status": "ok", unit: work / (timing.median / 1e3), **timing.to_json()}
