"""What the card can do at most: bytes per second of a copy and from L2, products per second in bf16 and fp8."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import triton_runtime
from .timing import Clock, Timing, short

# Numbers per load of a program, and what is read again and again: well inside the 50 MB of a Hopper's L2, too much for
# the multiprocessors' own caches.
L2_BLOCK = 4096
L2_BYTES = 20 * 2**20


def measure(device: torch.device) -> dict:
    """Return TB/s of a device-to-device copy (bytes read plus written) and of reads from L2, and TFLOP/s of large
    products on random data."""
    clock = Clock(device)
    size, rows = (8192, 2**32) if clock.cuda else (256, 2**22)
    result: dict = {"status": "ok"}
    buffers = torch.randint(0, 255, (2, rows), dtype=torch.uint8, device=device)
    result["copy"] = _rate(clock, lambda: buffers[1].copy_(buffers[0]), 2.0 * rows / 1e12, "tb_per_s")
    try:
        result["l2"] = l2(clock)
    except Exception as error:  # no Triton, or none for this card
        result["l2"] = {"status": "not run", "reason": short(error)}
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
            ("l2", "tb_per_s", "TB/s"),
            ("bf16", "tflops", "TFLOP/s"),
            ("fp8", "tflops", "TFLOP/s"),
        )
        if unit in (row := result[name])
    )
    return result


def l2(clock: Clock) -> dict:
    """Return the TB/s at which all multiprocessors together read a buffer that fits into L2, again and again; raises
    RuntimeError where Triton cannot run."""
    reason = triton_runtime.available(clock.device)
    if reason:
        raise RuntimeError(reason)
    from .ceilings_kernels import read_repeatedly

    if clock.cuda:
        multiprocessors = torch.cuda.get_device_properties(clock.device).multi_processor_count
        programs, blocks, passes = 8 * multiprocessors, L2_BYTES // (4 * L2_BLOCK), 100
    else:
        programs, blocks, passes = 2, 4, 1
    rounds = -(-blocks * passes // programs)
    source = torch.randint(0, 100, (blocks * L2_BLOCK,), dtype=torch.int32, device=clock.device)
    sums = torch.empty(programs * L2_BLOCK, dtype=torch.int32, device=clock.device)

    def read() -> None:
        triton_runtime.launch(read_repeatedly, (programs,), source, source, sums, blocks, rounds, BLOCK=L2_BLOCK)

    found = _rate(clock, read, 4.0 * programs * rounds * L2_BLOCK / 1e12, "tb_per_s")
    blocks_of_first = torch.arange(rounds, device=clock.device) * programs % blocks
    if not torch.equal(sums[:L2_BLOCK].long(), source.view(blocks, L2_BLOCK)[blocks_of_first].sum(0)):
        raise RuntimeError("the kernel's sums are wrong, so its time means nothing")
    return found


def _rate(clock: Clock, call: Callable[[], object], work: float, unit: str) -> dict:
    repeats = clock.repeats(call, 1.0, 50)
    timing = Timing.of(clock.sample(call, repeats))
    return {"status": "ok", unit: work / (timing.median / 1e3), **timing.to_json()}
