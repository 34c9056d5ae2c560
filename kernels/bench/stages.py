"""Where the time of one call goes: the kernels it launches, each between two events, grouped into stages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import triton_runtime
from .timing import Clock

STAGES = ("quantize", "attention", "backward", "other")


def stage_of(kernel: Any) -> str:
    """Return the stage of a Triton kernel, by the module that defines it."""
    function = getattr(kernel, "fn", kernel)
    while hasattr(function, "fn"):  # autotuners and heuristics wrap
        function = function.fn
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
    if "quantize" in name:
        return "quantize"
    return "backward" if "backward" in name else "attention"


def kernel_name(kernel: Any) -> str:
    """Return a kernel's own name."""
    function = getattr(kernel, "fn", kernel)
    while hasattr(function, "fn"):
        function = function.fn
    return getattr(function, "__name__", str(kernel))


@contextlib.contextmanager
def watched(clock: Clock) -> Iterator[list[tuple[str, str, Any, Any]]]:
    """Collect ``(stage, name, start, end)`` of every launch inside; the marks are events on a card, seconds else."""
    launches: list[tuple[str, str, Any, Any]] = []
    original = triton_runtime.launch

    def launch(kernel: Any, grid: tuple[int, ...], tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        start = clock.mark()
        result = original(kernel, grid, tensor, *args, **options)
        launches.append((stage_of(kernel), kernel_name(kernel), start, clock.mark()))
        return result

    holders = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(__package__.rpartition(".")[0]) and getattr(module, "launch", None) is original
    ]
    for module in holders:
        module.launch = launch
    try:
        yield launches
    finally:
        for module in holders:
            module.launch = original


def measure(call: Callable[[], object], clock: Clock, repeats: int = 5) -> dict:
    """Return milliseconds by stage and by kernel of ``call``, medians over ``repeats``; 'other' is what no launch of
    ours explains: torch's own kernels, and gaps."""
    if clock.cuda:
        call()
    rows = []
    for _ in range(repeats if clock.cuda else 1):
        with watched(clock) as launches:
            total = clock.sample(call, 1)[0]
        stages, kernels = dict.fromkeys(STAGES, 0.0), {}
        for stage, name, start, end in launches:
            taken = clock.between(start, end)
            stages[stage] += taken
            kernels[name] = kernels.get(name, 0.0) + taken
        stages["other"] = max(0.0, total - sum(stages.values()))
        rows.append((total, stages, kernels))
    total, stages, kernels = sorted(rows, key=lambda row: row[0])[len(rows) // 2]
    return {
        "total_ms": total,
        "ms": stages,
        "share": {name: taken / total if total else 0.0 for name, taken in stages.items()},
        "kernels_ms": kernels,
    }
