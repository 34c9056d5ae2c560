"""The cell of 4-bit linear layers: bytes and time of dequantizing, rounding inputs, and whole products.

One cell is one number of tokens of one model; the layers are those of a block that differ in shape. A packed layer
competes with torch's bf16 product and with the FP8 tensor-core product of operands that are FP8 already, which is the
least that FP8 can take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from .. import triton_runtime
from ..msfp import ops, triton_msfp
from ..msfp.formats import E2M1, FloatFormat
from ..msfp.inputs import DYNAMIC, STATIC, InputQuantizer
from ..msfp.packing import packed_width
from ..msfp.weights import PackedWeight, WeightFormat, dequantize_reference
from .cells import Cell
from .timing import Clock, relative_error

# Outputs and inputs of a block's linear layers (those of attention share a shape), and of the time projection, which
# sees one token. 'tiny' is for stand-ins.
DIMS = {"wan2.1-14b": (5120, 13824), "wan2.1-1.3b": (1536, 8960), "tiny": (32, 64)}
GROUP = 32
SECONDS = 0.5
# Rows and columns of a layer that are checked against plain torch, and the rows of x.
CHECKED = 256
# The bf16 product of the same numbers is as far off from float32; cuBLAS and we sum in other orders.
TOLERANCE = 4e-3


def shapes(model: str, tokens: int) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the layers that see ``tokens`` tokens, by name."""
    dim, hidden = DIMS[model]
    if tokens == 1:
        return {"time_projection": (6 * dim, dim)}
    layers = {"attention": (dim, dim)}
    return layers if tokens == 512 else {**layers, "ffn.0": (hidden, dim), "ffn.2": (dim, hidden)}


def run(cell: Cell, device: torch.device, save: Callable[[dict], None] = lambda result: None) -> dict:
    """Return the cell's result; ``cell.grid``'s product is the number of tokens."""
    tokens = math.prod(cell.grid)
    clock = Clock(device)
    result: dict = {"status": "failed", "tokens": tokens, "layers": []}
    result["kernels"] = triton_msfp.why_not(device) or "triton"
    with torch.no_grad():
        for name, (outputs, inputs) in shapes(cell.model, tokens).items():
            result["layers"].append({"layer": name, **_layer(tokens, outputs, inputs, device, clock)})
            save(result)
    right = all(row["right"] for row in result["layers"])
    return {**result, "status": "ok" if right else "failed", "headline": headline(result), **_why(right)}


def _why(right: bool) -> dict:
    return {} if right else {"message": "a kernel's result is not that of plain torch"}


def _layer(tokens: int, outputs: int, inputs: int, device: torch.device, clock: Clock) -> dict:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, inputs, generator=generator, device=device).bfloat16()
    weight = packed_layer(outputs, inputs, device, generator)
    bias = torch.randn(outputs, generator=generator, device=device).bfloat16()
    plain = ops.dequantize(weight, torch.bfloat16)
    signed = InputQuantizer(E2M1, STATIC, 3.0)
    unsigned = InputQuantizer(FloatFormat(2, 2, False), STATIC, 3.0, -0.17)
    dynamic = InputQuantizer(E2M1, DYNAMIC, 1.0)
    calls: dict[str, Callable[[], object]] = {
        "bf16": partial(functional.linear, x, plain, bias),
        "4 bits": partial(ops.linear, x, weight, bias),
        "4 bits, 4-bit input": partial(ops.linear, x, weight, bias, unsigned),
        "dequantize": partial(ops.dequantize, weight, torch.bfloat16),
        "round input": partial(ops.quantize_input, x, unsigned),
        "round input, dynamic": partial(ops.quantize_input, x, dynamic),
    }
    if triton_msfp.fuses(tokens, x.dtype) and ops.why_plain(weight, None, device) is None:
        calls["4 bits, not fused"] = lambda: functional.linear(x, ops.dequantize(weight, x.dtype), bias)
    fp8 = fp8_product(x, plain, bias)
    if fp8 is not None:
        calls["fp8, product alone"] = fp8
    moved = {
        "dequantize": weight.nbytes + plain.nbytes, "round input": 2 * x.nbytes, "round input, dynamic": 2 * x.nbytes,
    }  # fmt: skip
    timings, failed = clock.interleaved(calls, SECONDS)
    rows = {}
    for name, timing in timings.items():
        row = timing.to_json()
        if name in moved:
            row |= {"bytes": moved[name], "gb_per_s": moved[name] / timing.median / 1e6}
        rows[name] = row
    return {
        "outputs": outputs,
        "inputs": inputs,
        "packed_bytes": weight.nbytes,
        "bf16_bytes": plain.nbytes,
        "fused": "4 bits, not fused" in calls,
        "calls": rows,
        "failed": failed,
        **check(x, weight, bias, (signed, unsigned, dynamic)),
    }


def packed_layer(outputs: int, inputs: int, device: torch.device, generator: torch.Generator) -> PackedWeight:
    """Return a random e2m1 weight with groups of 32 and bf16 scales, of about the size that layers have."""
    form = WeightFormat(E2M1, GROUP)
    size = (outputs, packed_width(inputs, 4))
    codes = torch.randint(0, 256, size, generator=generator, device=device, dtype=torch.uint8)
    scale = torch.rand(form.scale_shape(outputs, inputs), generator=generator, device=device)
    return PackedWeight(codes, ((scale + 0.5) * 0.01).bfloat16(), None, form, inputs)


def fp8_product(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor] | None:
    """Return torch's product of FP8 operands with a scale per row, None where there is none."""
    if x.device.type != "cuda" or triton_runtime.capability(x.device) < 89:
        return None

    def rounded(y: Tensor) -> tuple[Tensor, Tensor]:
        scale = y.abs().amax(-1, keepdim=True).float() / 448.0
        return (y.float() / scale).to(torch.float8_e4m3fn), scale

    (a, a_scale), (b, b_scale) = rounded(x), rounded(weight)
    return partial(
        torch._scaled_mm, a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), bias=bias, out_dtype=torch.bfloat16
    )


def check(x: Tensor, weight: PackedWeight, bias: Tensor, quantizers: tuple[InputQuantizer, ...]) -> dict:
    """Return whether the kernels' results are those of plain torch: to the bit, products within rounding."""
    part = weight.codes[:CHECKED], weight.scale[:CHECKED]
    few = PackedWeight(*part, None, weight.format, weight.columns)
    values = dequantize_reference(few, torch.bfloat16)
    equal = torch.equal(ops.dequantize(weight, torch.bfloat16)[:CHECKED], values)
    tokens = x[:CHECKED]
    equal &= all(torch.equal(ops.quantize_input(x, q)[:CHECKED], q.reference(tokens)) for q in quantizers)
    exact = functional.linear(tokens.float(), values.float(), bias[:CHECKED].float())
    error = relative_error(ops.linear(x, weight, bias)[:CHECKED, :CHECKED], exact)
    return {"equal": equal, "error": error, "right": equal and error <= TOLERANCE}


def headline(result: dict) -> str:
    """Return the cell in one line."""
    said = []
    for row in result["layers"]:
        calls = row["calls"]
        times = ", ".join(f"{name} {calls[name]['ms']:.3f}" for name in ("bf16", "4 bits") if name in calls)
        said.append(f"{row['layer']}: {times} ms")
    return "; ".join(said)


def text(name: str, result: dict, columns: Callable[[list[list[str]]], str]) -> str:
    """Return the cell as text; ``columns`` aligns rows."""
    lines = [f"## {name}: {result['tokens']:,} tokens, kernels: {result['kernels']}"]
    table = [["layer", "shape", "call", "ms", "spread", "GB/s"]]
    for row in result["layers"]:
        shape = f"{row['outputs']} x {row['inputs']}"
        for call, timing in row["calls"].items():
            rate = f"{timing['gb_per_s']:.0f}" if "gb_per_s" in timing else "-"
            table.append([row["layer"], shape, call, f"{timing['ms']:.4f}", f"{timing['spread']:.1%}", rate])
        for call, why in row["failed"].items():
            table.append([row["layer"], shape, call, f"failed: {why[:60]}", "-", "-"])
    lines.append(columns(table))
    errors = ", ".join(f"{row['layer']} {row['error']:.1e}" for row in result["layers"])
    equal = all(row["equal"] for row in result["layers"])
    lines.append(
        f"values and rounded inputs {'equal plain torch to the bit' if equal else 'DIFFER from plain torch'}; "
        f"products off by {errors}"
    )
    return "\n".join(lines)
