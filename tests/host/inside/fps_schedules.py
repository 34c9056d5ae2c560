"""A three-phase schedule runs its phases at the right steps, whatever the sampler does around it."""

from __future__ import annotations

import torch
from fps_common import (
    apply,
    counting_override,
    model_of,
    pack_module,
    relative,
    run_cases,
    run_summary,
    runs,
    sample,
    shifted,
)

# 3 x 12 x 16 = 576 tokens; the windows see one tile, some, and all.
SIZE = (3, 24, 32)
SCHEDULE = """
0.95 fp8 x2    all 1 1
0.83 fp8 x1    all 60% 60%
0.00 fp8 token all all all
"""
STEPS = 6

MODEL = shifted(model_of())


def _sampled(**options) -> dict:
    patched = apply(MODEL, SCHEDULE)
    size = options.pop("size", SIZE)
    out = sample(patched, size=size, steps=options.pop("steps", STEPS), **options)
    return {"runs": [run_summary(run) for run in runs(patched)], "finite": bool(out.isfinite().all())}


def case_euler():
    return _sampled(sampler="euler")


def case_uni_pc():
    return _sampled(sampler="uni_pc")


def case_heun():
    return _sampled(sampler="heun", steps=3)


def case_cfg_batched():
    return _sampled(cfg=5.0)


def case_cfg_split():
    """Little memory: the host calls the model once per branch."""
    model = MODEL.model
    original = model.memory_required
    model.memory_required = lambda *args, **kwargs: 1e30
    try:
        split = _sampled(cfg=5.0)
    finally:
        del model.memory_required
    assert model.memory_required == original
    return split


def case_cfg_batched_equals_split():
    def run() -> torch.Tensor:
        return sample(apply(MODEL, SCHEDULE), size=SIZE, steps=3, cfg=5.0)

    batched = run()
    MODEL.model.memory_required = lambda *args, **kwargs: 1e30
    try:
        return relative(run(), batched)
    finally:
        del MODEL.model.memory_required


def case_two_stages():
    """Two samplers of one chain, as two KSamplerAdvanced make them."""
    patched = apply(MODEL, SCHEDULE)
    options = {"size": SIZE, "steps": STEPS}
    first = sample(patched, **options, start_step=0, last_step=3, force_full_denoise=False)
    second = sample(
        patched, **options, latent=first, start_step=3, last_step=STEPS, force_full_denoise=True, disable_noise=True
    )
    whole = sample(apply(MODEL, SCHEDULE), **options)
    return {"runs": [run_summary(run) for run in runs(patched)], "finite": bool(second.isfinite().all()),
            "shape": list(whole.shape)}  # fmt: skip


def case_odd_size():
    """136 x 104 pixels, 9 frames: 3 x 13 x 17 latents, padded to 3 x 7 x 9 tokens."""
    return _sampled(size=(3, 13, 17), steps=STEPS)


def case_odd_size_full_window():
    size = (3, 13, 17)
    plain = sample(MODEL, size=size, steps=2)
    return relative(sample(apply(MODEL, "0.00 bf16 - 99 99 99"), size=size, steps=2), plain)


def case_batch_of_two():
    return _sampled(batch=2, steps=3)


def case_one_frame():
    return _sampled(size=(1, 24, 32), steps=3)


def case_as_many_tokens_as_text():
    """A 2 x 16 x 16 grid has 512 tokens, as many as the text: cross-attention must not be taken for self-attention."""
    under, calls = counting_override(MODEL)
    patched = apply(under, "0.00 bf16 - 99 99 99")
    size = (2, 32, 32)
    error = relative(sample(patched, size=size, steps=2), sample(MODEL, size=size, steps=2))
    return {"relative": error, "cross_calls": len(calls), "run": run_summary(runs(patched)[0])}


def case_call_counts():
    """Steps x layers self-attention calls run sparse, as many cross-attention calls go to the override below."""
    under, calls = counting_override(model_of())
    patched = apply(under, "0.00 fp8 x1 all 1 1")
    sample(patched, size=SIZE, steps=2)
    run = run_summary(runs(patched)[0])
    return {
        "sparse": sum(s["sparse"] for s in run["steps"]),
        "other": len(calls),
        "lengths": sorted({k[1] for _, k in calls}),
    }


def case_same_seed_same_result():
    patched = apply(MODEL, SCHEDULE)
    return torch.equal(sample(patched, size=SIZE, steps=3), sample(patched, size=SIZE, steps=3))


def case_expected_densities():
    """What the engine says the three phases cost on this grid."""
    grid = pack_module("kernels.grid").TokenGrid
    schedule = pack_module("kernels.schedule").Schedule.parse(SCHEDULE)
    densities = pack_module("kernels.plan").step_densities
    return {"even": densities(schedule, grid(3, 12, 16), [1.0, 0.9, 0.1]),
            "odd": densities(schedule, grid(3, 7, 9), [1.0, 0.9, 0.1])}  # fmt: skip


run_cases(globals())
