"""Times the alternative configurations of the forward kernels (``kernels/attention/configs.py``) on one problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .. import triton_runtime
from ..attention import backends, configs, make_spec, triton_forward
from ..attention.spec import Spec
from ..quantize.triton_quantize import quantize, slots_of
from .cells import SLOTS, Cell
from .problem import Problem, expected
from .timing import Clock, relative_error, short


@dataclass(frozen=True)
class Kind:
    """What is tuned: a backend, what the phase asks for, the rounding that its reference follows, the error allowed."""

    backend: str
    attention: str
    granularity: str
    form: str
    tolerance: float


KINDS = {
    "fp8": Kind("triton-fp8", "fp8", "x1", "e4m3", 2e-2),
    "16": Kind("triton-bf16", "bf16", "x1", "none", 1e-2),
    "int8": Kind("triton-int8", "fp8", "x1", "int8", 2e-2),
    "fp8-token": Kind("triton-fp8", "fp8", "token", "e4m3", 2e-2),
}


def run(cell: Cell, device: torch.device, save: Callable[[dict], None]) -> dict:
    """Return one entry per kind, tile size and configuration: its time without quantization, or why there is none.

    The shipped configuration comes first in its group; ``faster`` names those that beat it by more than the spread.
    """
    clock = Clock(device)
    problem = Problem(cell, device, torch.bfloat16)
    rows: dict[str, dict] = {}
    result: dict = {"status": "ok", "contestants": rows, "faster": []}
    for name, kind in KINDS.items():
        for slots in SLOTS if cell.density != 100 else SLOTS[1:]:
            usable = dict(backends(device, problem.dtype, cell.dim, kind.attention))
            reason = usable.get(kind.backend, "no such backend")
            if reason:
                rows[f"{name}-{slots}"] = {"status": "not run", "reason": reason}
                continue
            try:
                group(clock, problem, name, slots, result)
            except Exception as error:  # one group's failure costs that group
                rows[f"{name}-{slots}"] = {"status": "failed", "reason": short(error)}
            save(result)
    timed = sum("ms" in row for row in rows.values())
    if not timed:
        reasons = {f"{name}: {row.get('reason')}" for name, row in rows.items()}
        return {**result, "status": "failed", "message": "; ".join(sorted(reasons))}
    shipped = "; ".join(result["faster"]) or "no configuration beats the shipped one by more than the spread"
    result["headline"] = f"{timed} configurations timed; {shipped}"
    return result


def candidates(spec: Spec, device: torch.device, dim: int) -> list[configs.Config]:
    """Return the forward's configurations for a call by ``spec``, first the one that such a call takes."""
    slots = slots_of(spec.index.shape[1], spec.format)
    return configs.candidates(
        triton_forward.KIND[spec.format], triton_runtime.capability(device), slots, dim,
        per_token=spec.granularity == "token", mask=triton_forward.mask_of(spec, slots)[0],
    )  # fmt: skip


def group(clock: Clock, problem: Problem, kind: str, slots: int, result: dict) -> None:
    """Time every candidate of one of KINDS and tile size in turns, as the op runs it, and add the entries to
    ``result``."""
    how = KINDS[kind]
    plan = problem.plan(slots, how.attention, how.granularity)
    spec = make_spec(plan, plan.lists_for(problem.q, problem.k, problem.v), how.backend)
    inputs = (problem.q, problem.k, problem.v)
    codes = None if how.form == "none" else quantize(*inputs, spec)
    want, heads, tokens = expected(problem, plan, how.form)
    calls = {}
    for number, config in enumerate(candidates(spec, problem.device, problem.cell.dim)):
        name = f"{kind}-{slots}-{number}"
        entry = result["contestants"][name] = {"family": "tune", "config": asdict(config), "density": plan.density}

        def call(config=config) -> torch.Tensor:
            return triton_forward.forward_codes(*inputs, codes, spec, stats=True, config=config)[0]

        try:
            entry["error"] = relative_error(call()[:, tokens][:, :, heads], want)
        except Exception as error:
            entry.update(status="failed", reason=short(error))
            continue
        if entry["error"] > how.tolerance:
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
