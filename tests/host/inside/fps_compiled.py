"""Compiled models: the host's own node, and compiled blocks, before and after ours, over three phases."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import TorchCompileModel, skip_torch_compile_dict
from fps_common import (
    apply,
    conditioning,
    model_of,
    pack_module,
    relative,
    run_cases,
    run_summary,
    runs,
    sample,
    shifted,
)

SIZE, OTHER, STEPS, LAYERS = (3, 12, 16), (3, 16, 20), 4, 3
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


def cold() -> None:
    """Forget what was compiled and planned, as in a new process."""
    torch._dynamo.reset()
    pack_module("kernels.plan").clear_plans()


def frames() -> int:
    """How often the compiler has looked at a frame."""
    return torch._dynamo.utils.counters["frames"]["total"]


def both(compiled: Callable, text: str) -> dict:
    """Two sizes, twice each, in a process that knows neither, with the compile node before and behind ours."""
    fresh = shifted(model_of())
    uncompiled = apply(fresh, text)
    expected = [sample(uncompiled, size=size, steps=STEPS) for size in (SIZE, OTHER)]
    found = {}
    for order in ("before", "after"):
        cold()
        patched = apply(compiled(fresh), text) if order == "before" else compiled(apply(fresh, text))
        errors, looked = [], []
        for size, right in zip((SIZE, OTHER), expected):
            for _ in range(2):
                errors.append(relative(sample(patched, size=size, steps=STEPS), right))
                looked.append(frames())
        recorded = run_summary(runs(patched)[0])["steps"]
        found[order] = {
            "relative": max(errors),
            "looked": looked,
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
    cold()
    ours, looked = whole(apply(fresh, "0.00 dense")), []
    for _ in range(3):
        out = sample(ours, size=SIZE, steps=2)
        looked.append(frames())
    return {"relative": relative(out, plain), "looked": looked}


def case_profile():
    """The profile of a compiled model, cold and at a second size: what it finds in the same model uncompiled."""
    fresh = shifted(model_of(layers=LAYERS), 2.0)
    found = {}
    for size in ((2, 16, 32), (3, 24, 32)):
        expected = _profile(fresh, size)
        for name, compiled in (("whole", whole), ("blocks", blocks)):
            cold()
            singles, rows = _profile(compiled(fresh), size)
            found[f"{name} {size}"] = {
                "singles": max(abs(a / b - 1) for a, b in zip(singles, expected[0])),
                "rows": max(float(abs(a - b).max()) for a, b in zip(rows, expected[1])),
                "count": len(rows),
            }
    return found


def _profile(model: Any, size: tuple[int, int, int]) -> tuple[list, list]:
    profile, study = pack_module("nodes.profile"), pack_module("kernels.profiling.study")
    latent = {"samples": torch.zeros(1, 16, *size)}
    job = profile.Job(conditioning(1), conditioning(0), latent, 7, 3, 1.0, "euler", "simple")
    result, _ = profile.run_profile(model, job, study.Goal("density", 0.5, 25.0, 2), True, None)
    entries = result.table.entries
    return result.singles, [entries[key] for key in sorted(entries)]


def case_without_ours_again():
    """The same compiled model with our node, without it, and with it: nothing of one run is left in the next."""
    fresh = shifted(model_of())
    text = SCHEDULES["sparse_first"]
    found = {}
    for name, compiled in (("whole", whole), ("blocks", blocks)):
        cold()
        expected = [sample(apply(fresh, text), size=SIZE, steps=STEPS), sample(fresh, size=SIZE, steps=STEPS)]
        cold()
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
