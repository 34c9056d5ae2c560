"""Times the alternative configurations of the forward kernels (``kernels/attention/configs.py``) on one problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch

from .. import triton_runtime
from ..attention import backends, configs, make_spec, triton_forward
from ..quantize.triton_quantize import quantize
from .cells import SLOTS, Cell
from .problem import Problem, expected
from .timing import Clock, relative_error, short

# Backend, what the phase asks for, and the rounding that its reference follows.
KINDS = {
    "fp8": ("triton-fp8", "fp8", "e4m3", 2e-2),
    "16": ("triton-bf16", "bf16", "none", 1e-2),
    "int8": ("triton-int8", "fp8", "int8", 2e-2),
}


def run(cell: Cell, device: torch.device, save: Callable[[dict], None]) -> dict:
    """Return one entry per kind, tile size and configuration: its time without quantization, or why there is none.

    The shipped configuration comes first in its group; ``faster`` names those that beat it by more than the spread.
    """
    clock = Clock(device)
    problem = Problem(cell, device, torch.bfloat16)
    rows: dict[str, dict] = {}
    result: dict = {"status": "ok", "contestants": rows, "faster": []}
    for kind, (backend, attention, form, tolerance) in KINDS.items():
        for slots in SLOTS if cell.density != 100 else SLOTS[1:]:
            reason = dict(backends(device, problem.dtype, cell.dim, attention)).get(backend, "no such backend")
            if reason:
                rows[f"{kind}-{slots}"] = {"status": "not run", "reason": reason}
                continue
            try:
                group(clock, problem, kind, slots, (backend, attention, form, tolerance), result)
            except Exception as error:  # one group's failure costs that group
                rows[f"{kind}-{slots}"] = {"status": "failed", "reason": short(error)}
            save(result)
    timed = sum("ms" in row for row in rows.values())
    if not timed:
        reasons = {f"{name}: {row.get('reason')}" for name, row in rows.items()}
        return {**result, "status": "failed", "message": "; ".join(sorted(reasons))}
    shipped = "; ".join(result["faster"]) or "no configuration beats the shipped one by more than the spread"
    result["headline"] = f"{timed} configurations timed; {shipped}"
    return result


def group(clock: Clock, problem: Problem, kind: str, slots: int, how: tuple, result: dict) -> None:
    """Time every candidate of one kind and tile size in turns and add the entries to ``result``."""
    backend, attention, form, tolerance = how
    plan = problem.plan(slots, attention)
    spec = make_spec(plan, plan.lists_for(problem.q, problem.k), backend)
    capability = triton_runtime.capability(problem.device)
    # What a kernel reserves per tile: a power of two that every product can take.
    reserved = max(32 if kind == "fp8" else 16, 1 << (spec.index.shape[1] - 1).bit_length())
    candidates = configs.candidates(kind, capability, reserved, problem.cell.dim)
    inputs = (problem.q, problem.k, problem.v)
    codes = None if form == "none" else quantize(*inputs, spec)
    want, heads, tokens = expected(problem, plan, form)
    calls = {}
    for number, config in enumerate(candidates):
        name = f"{kind}-{slots}-{number}"
        entry = result["contestants"][name] = {"family": "tune", "config": asdict(config), "density": plan.density}

        def call(config=config) -> torch.Tensor:
            return triton_forward.forward_codes(*inputs, codes, spec, stats=False, config=config)[0]

        try:
            entry["error"] = relative_error(call()[:, tokens][:, :, heads], want)
        except Exception as error:
            entry.update(status="failed", reason=short(error))
            continue
        if entry["error"] > tolerance:
            entry.update(status="wrong", reason=f"differs from the reference ({entry['error']:.3g})")
            continue
        entry["status"] = "ok"
        calls[name] = call
    timings, failed = clock.interleaved(calls, 0.5)
    for name, timing in timings.items():
        result["contestants"][name].update(timing.to_json())
    for name, reason in failed.items():
        result["contestants"][name].update(status="failed", reason=reason)
    shipped = timings.get(f"{kind}-{slots}-0")
    for name, timing in timings.items():
        if shipped and timing.high < shipped.low:
            result["faster"].append(f"{name} takes {timing.median / shipped.median:.1%} of {kind}-{slots}-0")
