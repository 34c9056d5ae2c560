"""What runs first on a new card: every kernel of ours once, forward and backward, against the plain reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from . import stages
from .attention_cell import check
from .cells import Cell
from .peers import ours
from .problem import Problem
from .timing import Clock, short

# Few heads: the reference computes a whole gradient.
HEADS = 2


def run(cell: Cell, device: torch.device, save: Callable[[dict], None]) -> dict:
    """Return one entry per backend of ours: right or wrong, the kernels it launched, the seconds it took."""
    clock = Clock(device)
    problem = Problem(replace(cell, heads=min(cell.heads, HEADS), batch=1), device, torch.bfloat16)
    rows: dict[str, dict] = {}
    result = {"status": "failed", "contestants": rows}
    for contestant in ours.ALL:
        start = time.perf_counter()
        try:
            reason = contestant.reason(problem)
            if reason:
                rows[contestant.name] = {"status": "not run", "reason": reason}
                continue
            prepared = contestant.prepare(problem)
            with stages.watched(clock) as launches:
                entry = check(problem, prepared)
            entry["kernels"] = sorted({name for _, name, _, _ in launches})
        except Exception as error:  # one backend's failure costs that backend
            entry = {"status": "failed", "reason": short(error)}
        rows[contestant.name] = {**entry, "seconds": time.perf_counter() - start}
        save(result)
    bad = [f"{name}: {row.get('reason')}" for name, row in rows.items() if row["status"] in ("wrong", "failed")]
    right = [name for name, row in rows.items() if row["status"] == "ok"]
    result["status"] = "failed" if bad or not right else "ok"
    result["message" if bad else "headline"] = "; ".join(bad) if bad else f"right: {', '.join(right)}"
    return result
