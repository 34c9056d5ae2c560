"""One attention cell: every contestant prepared, checked, then timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..plan import clear_plans
from . import stages
from .cells import Cell
from .figures import fastest
from .peers import Contestant, Prepared, contestants, ours
from .problem import SIGMA, Problem, expected, expected_gradients
from .timing import Clock, relative_error, short

SECONDS_EACH = 1.0
MOST_REPEATS = 40
# What the reference does to an FP8 gradient is rounded in another order by a kernel, and P's rounding may flip.
GRADIENT_TOLERANCE = 5e-2


def run(
    cell: Cell,
    device: torch.device,
    peers: str = "all",
    save: Callable[[dict], None] = lambda result: None,
    dtype: torch.dtype = torch.bfloat16,
) -> dict:
    """Return the cell's result: one entry per contestant, with its time, density, error and extra memory.

    ``peers`` is 'all', 'none' (ours and the dense baseline only) or comma-separated names. ``save`` gets the result so
    far after every contestant that was prepared, so that a crash later keeps it. A contestant whose output is wrong is
    recorded as wrong and never timed.
    """
    clock = Clock(device)
    problem = Problem(cell, device, dtype)
    result: dict = {
        "status": "failed",
        "tokens": problem.grid.tokens,
        "dense_flops": problem.flops,
        "input_bytes": problem.input_bytes,
        "contestants": {},
    }
    ready: dict[str, Prepared] = {}
    contestant_of: dict[str, Contestant] = {}
    for contestant in chosen(peers):
        contestant_of[contestant.name] = contestant
        entry = {"family": contestant.family}
        result["contestants"][contestant.name] = entry
        try:
            reason = contestant.reason(problem)
            if reason:
                entry.update(status="not run", reason=reason)
                continue
            prepared = contestant.prepare(problem)
            entry.update(check(problem, prepared))
            entry["density"] = prepared.density
            entry.update((prepared.notes and {"notes": prepared.notes}) or {})
            if entry["status"] == "ok":
                entry["extra_bytes"] = clock.memory(prepared.call)
                ready[contestant.name] = prepared
        except Exception as error:  # one contestant's failure costs that contestant
            entry.update(status="failed", reason=short(error))
        save(result)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    calls = {name: prepared.call for name, prepared in ready.items()}
    timings, failed = clock.interleaved(calls, SECONDS_EACH, MOST_REPEATS)
    for name, entry in result["contestants"].items():
        if name in timings:
            entry.update(timings[name].to_json())
        elif name in failed:
            entry.update(status="failed", reason=failed[name])
    for name, prepared in ready.items():
        entry = result["contestants"][name]
        if entry["family"] != "ours" or entry["status"] != "ok":
            continue
        try:
            entry["stages"] = stages.measure(prepared.call, clock)
            if not problem.backward and entry["stages"]["ms"]["quantize"]:
                # What the backward quantizes again is not in this account.
                moved = ours.quantizer_bytes(problem, contestant_of[name], prepared)
                entry["stages"]["quantize_bytes_per_s"] = moved / (entry["stages"]["ms"]["quantize"] / 1e3)
            if clock.cuda:
                entry["host_us"] = clock.host(prepared.call)
        except Exception as error:
            entry["stages_reason"] = short(error)
    result["plan"] = plan_times(problem)
    result["status"] = "ok"
    result["headline"] = headline(result)
    return result


def chosen(peers: str) -> list[Contestant]:
    """Return the contestants that ``peers`` names; raises ValueError naming all where one is unknown."""
    everyone = contestants()
    if peers == "all":
        return everyone
    if peers == "none":
        return [c for c in everyone if c.family == "ours" or c.name == "cudnn"]
    names = [name.strip() for name in peers.split(",") if name.strip()]
    known = [c.name for c in everyone]
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is no contestant; name some of {', '.join(known)}.")
    return [c for c in everyone if c.name in names or c.name == "cudnn"]


def check(problem: Problem, prepared: Prepared) -> dict:
    """Return status 'ok' or 'wrong' and the relative L2 errors: of the output against the reference with the same
    rounding and without any, and of the gradients."""
    if prepared.check is not None:
        found = {"error": prepared.check()}
    else:
        with torch.no_grad():
            out = prepared.tokens(prepared.forward(*prepared.inputs))
        want, heads, tokens = problem.once(expected, prepared.plan, prepared.form)
        got = out[:, tokens][:, :, heads]
        found = {"error": relative_error(got, want)}
        if prepared.form != "none":
            found["error_exact"] = relative_error(got, problem.once(expected, prepared.plan, "none")[0])
    fine = found["error"] <= prepared.tolerance
    if prepared.grad is not None:
        grads = torch.autograd.grad(prepared.forward(*prepared.inputs), prepared.inputs, prepared.grad)
        want, head = problem.once(expected_gradients, prepared.plan, prepared.form)
        got = [prepared.tokens(x)[:1, :, head : head + 1] for x in grads]
        errors = {name: relative_error(x, y) for name, x, y in zip(("dq", "dk", "dv"), got, want)}
        found["gradient_errors"] = errors
        fine = fine and max(errors.values()) <= GRADIENT_TOLERANCE
    found["tolerance"] = prepared.tolerance
    if not fine:
        text = ", ".join(
            f"{name} {value:.3g}" for name, value in {"out": found["error"], **found.get("gradient_errors", {})}.items()
        )
        return {**found, "status": "wrong", "reason": f"differs from the reference ({text}), so it is not timed"}
    return {**found, "status": "ok"}


def plan_times(problem: Problem) -> dict:
    """Return the milliseconds of building the FP8 plan from nothing and the microseconds of looking it up again."""
    from ..plan import plans_for
    from ..schedule import Schedule

    schedule = Schedule.parse(f"0.00 fp8 x1 {problem.window(128).words}")
    clear_plans()

    def look_up():
        return plans_for(schedule, problem.grid, problem.cell.heads, slots=128).at(SIGMA, device=problem.device)

    start = time.perf_counter()
    look_up()
    built = time.perf_counter() - start
    repeats = 1000
    start = time.perf_counter()
    for _ in range(repeats):
        look_up()
    return {"build_ms": built * 1e3, "lookup_us": (time.perf_counter() - start) / repeats * 1e6}


def headline(result: dict) -> str:
    """Return what the cell says in half a line."""
    dense, best = fastest(result, "dense"), fastest(result, "ours")
    if not best:
        wrong = [f"{n}: {e.get('reason', '')}" for n, e in result["contestants"].items() if e["family"] == "ours"]
        return "ours was not timed: " + "; ".join(wrong)[:300]
    text = f"{best[0]} {best[1]['ms']:.3f} ms"
    if dense:
        ratio = dense[1]["ms"] / best[1]["ms"]
        text += f", {dense[0]} {dense[1]['ms']:.3f} ms: {ratio:.2f}x, E {ratio * best[1]['density']:.2f}"
    return text


def start_times(cell: Cell, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> dict:
    """Return the seconds of the first call of each of our backends in a fresh process with an empty kernel cache, and
    of the second."""
    clock = Clock(device)
    problem = Problem(cell, device, dtype)
    # What torch itself needs for its first kernels is not ours.
    torch.nn.functional.scaled_dot_product_attention(*(x[:, :128].transpose(1, 2) for x in problem.leaves()))
    rows = {}
    for contestant in [c for c in contestants() if c.family == "ours"]:
        reason = contestant.reason(problem)
        if reason:
            rows[contestant.name] = {"status": "not run", "reason": reason}
            continue
        try:
            prepared = contestant.prepare(problem)
            first, second = clock.once(prepared.call) / 1e3, clock.once(prepared.call) / 1e3
            rows[contestant.name] = {"status": "ok", "first_s": first, "second_s": second}
        except Exception as error:
            rows[contestant.name] = {"status": "failed", "reason": short(error)}
    firsts = {name: row["first_s"] for name, row in rows.items() if row["status"] == "ok"}
    text = ", ".join(f"{name} {value:.1f} s" for name, value in firsts.items())
    return {"status": "ok", "contestants": rows, "headline": f"first call: {text or 'none ran'}"}
