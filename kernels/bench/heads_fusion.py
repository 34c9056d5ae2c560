"""Heads with different patterns: in one call, in one call per pattern, and in one call per head.

One call is what ``pattern_of_head`` is for. Without it an implementation gathers the heads of each pattern, calls, and
puts the results back (what Sparse-vDiT calls fusion, arXiv 2506.03065 section 4.2), or calls head by head. Heads that
skip are zeroed there and not called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..attention import fps_attention, op
from ..grid import Tiling
from ..measure_patterns import Call, pattern_plan
from ..patterns import Pattern, Skip
from ..plan import AttentionPlan
from .stages import watched
from .timing import Clock, relative_error

WAYS = ("one call", "one call per pattern", "one call per head")
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Counts:
    """How often attention was called, and what Triton launched, by stage; no launches on the reference."""

    calls: int = 0
    launches: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def counted(clock: Clock) -> Iterator[Counts]:
    """Count the attention forwards inside; complete when the block ends."""
    counts = Counts()
    original = op.run_forward

    def run_forward(*args: object) -> object:
        counts.calls += 1
        return original(*args)

    op.run_forward = run_forward
    try:
        with watched(clock) as launches:
            yield counts
        for stage, *_ in launches:
            counts.launches[stage] = counts.launches.get(stage, 0) + 1
    finally:
        op.run_forward = original


def ways(
    patterns: Sequence[Pattern], tiling: Tiling, call: Call, chosen: np.ndarray, inputs: Inputs
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return by its name in ``WAYS`` what computes attention of ``inputs``, q, k, v ``(B, S, H, D)``, in which head h
    uses ``patterns[chosen[h]]``; plans and indices are made here, outside of what is timed."""
    q, k, v = inputs
    mixed = pattern_plan(patterns, tiling, call, np.asarray(chosen, dtype=np.int32)[None])
    groups = []
    for number in np.unique(chosen).tolist():
        if isinstance(patterns[number], Skip):
            continue
        heads = np.flatnonzero(chosen == number)
        plan = pattern_plan([patterns[number]], tiling, call, np.zeros((1, len(heads)), dtype=np.int32))
        groups.append((torch.from_numpy(heads).to(q.device), replace(plan, layout=mixed.layout)))
    single = [(int(h), _one_head(plan)) for heads, plan in groups for h in heads]
    without = torch.zeros_like if sum(len(heads) for heads, _ in groups) < len(chosen) else torch.empty_like

    def one_call() -> torch.Tensor:
        return fps_attention(q, k, v, mixed, backend=call.backend)

    def per_pattern() -> torch.Tensor:
        out = without(q)
        for heads, plan in groups:
            part = fps_attention(*(x.index_select(2, heads) for x in inputs), plan, backend=call.backend)
            out.index_copy_(2, heads, part)
        return out

    def per_head() -> torch.Tensor:
        out = without(q)
        for h, plan in single:
            out[:, :, h : h + 1] = fps_attention(*(x[:, :, h : h + 1] for x in inputs), plan, backend=call.backend)
        return out

    return dict(zip(WAYS, (one_call, per_pattern, per_head)))


def _one_head(plan: AttentionPlan) -> AttentionPlan:
    return replace(plan, lists=replace(plan.lists, pattern_of_head=plan.lists.pattern_of_head[:, :1]))


def compare(calls: dict[str, Callable[[], torch.Tensor]], clock: Clock) -> dict[str, dict]:
    """Return per way its number of attention calls and launches, whether its output equals the one call's to the bit,
    and their relative L2 distance."""
    found, first = {}, None
    for name, call in calls.items():
        with counted(clock) as counts:
            out = call()
        first = out if first is None else first
        found[name] = {
            "calls": counts.calls,
            "launches": counts.launches,
            "equal": bool(torch.equal(out, first)),
            "distance": relative_error(out, first),
        }
    return found
