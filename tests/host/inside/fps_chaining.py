"""Beside other nodes that hook attention, wrap the model or patch blocks, in either order."""

from __future__ import annotations

import torch
from fps_common import (
    apply,
    counting_override,
    load_pack,
    model_of,
    pack_module,
    relative,
    run_cases,
    run_summary,
    runs,
    sample,
    shifted,
)

SIZE = (3, 24, 32)
WINDOW = "0.00 bf16 - all 1 1"
HOOK = "optimized_attention_override"
LAYERS, STEPS = 3, 2

MODEL = model_of()
SPARSE = sample(apply(MODEL, WINDOW), size=SIZE)


def _total(model) -> dict:
    run = run_summary(runs(model)[-1])
    reasons: dict[str, int] = {}
    for step in run["steps"]:
        for reason, calls in step["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + calls
    return {
        "sparse": sum(s["sparse"] for s in run["steps"]),
        "dense": sum(s["dense"] for s in run["steps"]),
        "reasons": reasons,
        "notes": run["notes"],
    }


def case_override_before():
    """Another node's override stands below ours and gets cross-attention."""
    under, calls = counting_override(MODEL)
    patched = apply(under, WINDOW)
    equal = torch.equal(sample(patched, size=SIZE), SPARSE)
    return {"equal": equal, "calls": len(calls)} | _total(patched)


def case_override_after():
    """Another node that sets the override later, without chaining, does not remove ours."""
    patched, calls = counting_override(apply(MODEL, WINDOW))
    equal = torch.equal(sample(patched, size=SIZE), SPARSE)
    return {"equal": equal, "calls": len(calls)} | _total(patched)


def case_override_gets_what_stays_dense():
    under, calls = counting_override(MODEL)
    patched = apply(under, "0.00 dense")
    sample(patched, size=SIZE)
    return {"calls": len(calls), "self": sum(q == k for q, k in calls)}


def _with_block_patch(model, seen: list, chain: bool):
    m = model.clone()
    for i in range(LAYERS):
        options = m.model_options.get("transformer_options", {})
        inner = options.get("patches_replace", {}).get("dit", {}).get(("double_block", i)) if chain else None

        def patch(args, extra, inner=inner, i=i):
            seen.append(i)
            return inner(args, extra) if inner is not None else extra["original_block"](args)

        m.set_model_patch_replace(patch, "dit", "double_block", i)
    return m


def case_block_patch_before():
    seen: list = []
    patched = apply(_with_block_patch(MODEL, seen, chain=False), WINDOW)
    return {"equal": torch.equal(sample(patched, size=SIZE), SPARSE), "seen": len(seen)} | _total(patched)


def case_block_patch_after_chaining():
    seen: list = []
    patched = _with_block_patch(apply(MODEL, WINDOW), seen, chain=True)
    return {"equal": torch.equal(sample(patched, size=SIZE), SPARSE), "seen": len(seen)} | _total(patched)


def case_block_patch_after_replacing():
    """A node that replaces our marker: everything stays dense, and the report says so."""
    patched = _with_block_patch(apply(MODEL, WINDOW), [], chain=False)
    equal = torch.equal(sample(patched, size=SIZE), sample(MODEL, size=SIZE))
    return {"equals_dense": equal} | _total(patched)


def case_applied_twice():
    """The second node wins; nothing runs twice."""
    patched = apply(apply(MODEL, "0.00 fp8 x1 all all all"), WINDOW)
    return {"equal": torch.equal(sample(patched, size=SIZE), SPARSE)} | _total(patched)


def case_applied_around_a_chained_block_patch():
    seen: list = []
    patched = apply(_with_block_patch(apply(MODEL, WINDOW), seen, chain=True), WINDOW)
    return {"equal": torch.equal(sample(patched, size=SIZE), SPARSE), "seen": len(seen)} | _total(patched)


def case_two_models_from_one():
    """Two patches of one model do not share a recorder, and a clone shares its parent's."""
    first, second = apply(MODEL, WINDOW), apply(MODEL, "0.00 dense")
    sample(first, size=SIZE)
    sample(shifted(first), size=SIZE)
    sample(second, size=SIZE)
    return {"first": len(runs(first)), "second": len(runs(second))}


def case_wrapper_that_skips_the_model():
    """A caching node that skips a step: the report says so and counts nothing."""
    import comfy.patcher_extension

    calls: list = []

    def skip_second(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            return torch.zeros_like(args[0])
        return executor(*args, **kwargs)

    patched = apply(MODEL, WINDOW)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", skip_second)
    sample(patched, size=SIZE)
    return _total(patched)


def case_wrapper_that_takes_the_override():
    """A wrapper inside ours that sets its own override without chaining: all of its work, none of ours, and said."""
    import comfy.patcher_extension

    def take(executor, x, timestep, context, clip_fea, concat, options, **kwargs):
        options[HOOK] = lambda func, q, k, v, *args, **kw: func(q, k, v, *args, **kw)
        return executor(x, timestep, context, clip_fea, concat, options, **kwargs)

    patched = apply(MODEL, WINDOW)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", take)
    equal = torch.equal(sample(patched, size=SIZE), sample(MODEL, size=SIZE))
    return {"equals_dense": equal} | _total(patched)


def case_masked_or_reshaped_calls_stay_dense():
    reason = pack_module("nodes.override").dense_reason
    plans = pack_module("kernels.plan").plans_for
    schedule = pack_module("kernels.schedule").Schedule.parse(WINDOW)
    plan = plans(schedule, pack_module("kernels.grid").TokenGrid(1, 4, 4), 2).at(0.5)
    x, y = torch.zeros(1, 16, 256), torch.zeros(1, 17, 256)
    mask = torch.zeros(16, 16)
    return [
        reason(x, x, x, 2, (), {}, plan, True),
        reason(x, x, x, 2, (), {"mask": mask}, plan, True),
        reason(x, x, x, 2, (2, mask), {}, plan, True),
        reason(x, x, x, 2, (), {"skip_reshape": True}, plan, True),
        reason(x, y, y, 2, (), {}, plan, True),
        reason(y, y, y, 2, (), {}, plan, True),
        reason(y, y, y, 2, (), {}, plan, False),
        reason(x, x, x, 3, (), {}, plan, True),
        reason(x, x, x, 8, (), {}, plan, True),
    ]


def case_core_easycache():
    from comfy_extras.nodes_easycache import EasyCacheNode

    patched = EasyCacheNode.execute(apply(shifted(MODEL), WINDOW), 0.2, 0.15, 0.95, False).result[0]
    out = sample(patched, size=SIZE, steps=6)
    return {"finite": bool(out.isfinite().all())} | _total(patched)


def case_attention_override_names():
    """The constants that stand for the host's enumerations."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    around, patch = pack_module("nodes.around"), pack_module("nodes.patch")
    return [
        around.DIFFUSION_MODEL == WrappersMP.DIFFUSION_MODEL,
        patch.ON_PRE_RUN == CallbacksMP.ON_PRE_RUN,
        patch.ON_CLEANUP == CallbacksMP.ON_CLEANUP,
        around.OVERRIDE == HOOK,
    ]


def case_not_wan():
    class Flux:
        pass

    class Model:
        diffusion_model = Flux()

    class Patcher:
        model = Model()

        def get_attachment(self, key):
            return None

        def get_model_object(self, name):
            return self.model.diffusion_model

    try:
        load_pack()["FPSAttentionApply"].execute(model=Patcher(), backend="auto", schedule=WINDOW)
    except ValueError as error:
        return str(error)
    return None


def case_backend_that_cannot_run():
    try:
        apply(MODEL, "0.00 fp8 x1 all 1 1", backend="triton-fp8")
    except ValueError as error:
        return str(error)
    return None


def case_torch_compile():
    """The host's own compile node, whole model, before and after ours: same result, still sparse."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    results = {}
    for order in ("before", "after"):
        model = MODEL.clone() if order == "before" else apply(MODEL, WINDOW)
        set_torch_compile_wrapper(model=model, backend="eager")
        patched = apply(model, WINDOW) if order == "before" else model
        out = sample(patched, size=SIZE)
        results[order] = {"relative": relative(out, SPARSE)} | _total(patched)
    return results


run_cases(globals())
