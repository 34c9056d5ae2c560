"""Compiled models: the host's own node, and compiled blocks, before and after ours, over three phases."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import TorchCompileModel, skip_torch_compile_dict
from fps_common import apply, model_of, relative, run_cases, run_summary, runs, sample, shifted

SIZE, STEPS, LAYERS = (3, 12, 16), 4, 3
# Four steps under shift 8 stand at 1.000, 0.960, 0.889 and 0.727: every phase is met, and the first is dense or not.
SCHEDULES = {
    "dense_first": "0.98 dense\n0.90 bf16 - 1 1 1\n0.00 fp8 x1 60% all all",
    "sparse_first": "0.98 bf16 - 1 1 1\n0.90 dense\n0.00 fp8 x1 60% all all",
}


def whole(model: Any, **options: Any) -> Any:
    """The whole model, with the guards that the host's node drops."""
    m = model.clone()
    set_torch_compile_wrapper(model=m, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict}, **options)
    return m


def blocks(model: Any) -> Any:
    """Every block on its own, as other packs do."""
    m = model.clone()
    keys = [f"diffusion_model.blocks.{i}" for i in range(LAYERS)]
    set_torch_compile_wrapper(model=m, keys=keys, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    return m


def both(compiled: Callable, text: str) -> dict:
    fresh = shifted(model_of())
    expected = sample(apply(fresh, text), size=SIZE, steps=STEPS)
    found = {}
    for order in ("before", "after"):
        torch._dynamo.reset()
        patched = apply(compiled(fresh), text) if order == "before" else compiled(apply(fresh, text))
        error = [relative(sample(patched, size=SIZE, steps=STEPS), expected) for _ in range(2)]
        recorded = run_summary(runs(patched)[-1])["steps"]
        found[order] = {
            "relative": max(error),
            "sparse": [step["sparse"] for step in recorded],
            "dense": [step["dense"] for step in recorded],
            "reasons": [step["reasons"] for step in recorded],
            "timed": [len(s.blocks) for s in runs(patched)[-1].steps.values()],
        }
    return found


def case_whole_dense_first():
    return both(whole, SCHEDULES["dense_first"])


def case_whole_sparse_first():
    return both(whole, SCHEDULES["sparse_first"])


def case_blocks_dense_first():
    return both(blocks, SCHEDULES["dense_first"])


def case_blocks_sparse_first():
    return both(blocks, SCHEDULES["sparse_first"])


def case_a_dense_schedule():
    fresh = shifted(model_of())
    plain = sample(whole(fresh), size=SIZE, steps=2)
    torch._dynamo.reset()
    return relative(sample(whole(apply(fresh, "0.00 dense")), size=SIZE, steps=2), plain)


def case_without_ours_again():
    """The same compiled model with our node, without it, and with it: nothing of one run is left in the next."""
    fresh = shifted(model_of())
    text = SCHEDULES["sparse_first"]
    found = {}
    for name, compiled in (("whole", whole), ("blocks", blocks)):
        torch._dynamo.reset()
        expected = [sample(apply(fresh, text), size=SIZE, steps=STEPS), sample(fresh, size=SIZE, steps=STEPS)]
        torch._dynamo.reset()
        ours, plain = compiled(apply(fresh, text)), compiled(fresh)
        order = ((ours, expected[0]), (plain, expected[1]), (ours, expected[0]), (plain, expected[1]))
        found[name] = [relative(sample(model, size=SIZE, steps=STEPS), right) for model, right in order]
    return found


def case_inductor():
    """The host's own node as it is; a minute of compiling, so only where it is asked for."""
    if os.environ.get("FPS_INDUCTOR") != "1":
        return None
    return both(lambda model: TorchCompileModel.execute(model, "inductor").result[0], SCHEDULES["dense_first"])


run_cases(globals())
