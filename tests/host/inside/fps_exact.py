"""Dense is the host's own result bit for bit; full windows equal it closely; broken lists do not."""

from __future__ import annotations

import dataclasses
import sys

import torch
from fps_common import PACK, apply, load_pack, model_of, pack_module, relative, run_cases, runs, sample, shifted

# 3 x 12 x 16 tokens: nine tiles or more.
SIZE = (3, 24, 32)
FULL_RUNS = "0.00 bf16 - all all all"
FULL_TILES = "0.00 bf16 - 99 99 99"

MODEL = model_of()
PLAIN = sample(MODEL, size=SIZE)


def case_dense_schedule():
    patched = apply(MODEL, "0.00 dense")
    out = sample(patched, size=SIZE)
    return {"equal": torch.equal(out, PLAIN), "finite": bool(PLAIN.isfinite().all()), "scale": float(PLAIN.abs().max())}


def case_model_that_came_in_is_untouched():
    before = sample(MODEL, size=SIZE)
    apply(MODEL, "0.00 bf16 - all 1 1")
    options = MODEL.model_options.get("transformer_options", {})
    return {
        "equal": torch.equal(before, sample(MODEL, size=SIZE)),
        "patches": len(options.get("patches_replace", {})),
        "wrappers": sum(len(w) for by_key in MODEL.wrappers.values() for w in by_key.values()),
    }


def case_dense_phase_of_a_sparse_schedule():
    """All steps of the run lie in the dense phase: nothing may differ, although blocks are marked."""
    patched = apply(MODEL, "0.50 dense\n0.00 fp8 x1 all 1 1")
    return torch.equal(sample(shifted(patched), size=SIZE, steps=2), sample(shifted(MODEL), size=SIZE, steps=2))


def case_full_runs():
    return relative(sample(apply(MODEL, FULL_RUNS), size=SIZE), PLAIN)


def case_full_tiles():
    patched = apply(MODEL, FULL_TILES)
    error = relative(sample(patched, size=SIZE), PLAIN)
    return {"relative": error, "density": next(iter(runs(patched)[0].steps.values())).density}


def case_full_fp8():
    return relative(sample(apply(MODEL, "0.00 fp8 x1 all all all"), size=SIZE), PLAIN)


def case_sparse():
    return relative(sample(apply(MODEL, "0.00 bf16 - all 1 1"), size=SIZE), PLAIN)


def _mutated(change) -> float:
    """The distance from dense when ``change`` spoils the lists of the full-window plan."""
    plan_module = pack_module("kernels.plan")
    original = plan_module.Plans.at

    def at(self, *args, **kwargs):
        plan = original(self, *args, **kwargs)
        ids, count = plan.lists.ids.clone(), plan.lists.count.clone()
        change(ids, count)
        lists = dataclasses.replace(plan.lists, ids=ids, count=count)
        return dataclasses.replace(plan, lists=lists)

    plan_module.Plans.at = at
    try:
        return relative(sample(apply(MODEL, FULL_TILES), size=SIZE), PLAIN)
    finally:
        plan_module.Plans.at = original


def case_mutations():
    def unchanged(ids, count):
        pass

    def one_tile_removed(ids, count):
        count[0, 4] -= 1

    def shifted_by_one(ids, count):
        # Every tile moves up by one; the last one falls off the end.
        ids[0, 4] += 1
        count[0, 4] -= 1

    return {f.__name__: _mutated(f) for f in (unchanged, one_tile_removed, shifted_by_one)}


def case_one_identity():
    """One copy of the package and of its ops in this process."""
    nodes = load_pack()
    names = sorted(n for n in sys.modules if n.endswith(".kernels.attention.op"))
    ops = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("fpsattention::")]
    roots = {cls.__module__.rsplit(".nodes.", 1)[0] for cls in nodes.values()}
    files = {str(sys.modules[n].__file__) for n in names}
    return {
        "modules": names,
        "roots": sorted(roots),
        "ops": sorted(s.name for s in ops),
        "files": len(files),
        "outside_name": "fpsattention" in sys.modules,
        "pack_on_path": PACK in sys.path,
        "host_nodes": sys.modules["nodes"].__file__,
    }


def case_fp8_weights():
    """The stock loader's FP8 weight type: q, k and v stay wide, and the patch runs."""
    import comfy.sd
    from fps_tiny import tiny_wan

    model = comfy.sd.load_diffusion_model_state_dict(tiny_wan(), model_options={"dtype": torch.float8_e4m3fn})
    plain = sample(model, size=SIZE)
    patched = apply(model, FULL_TILES)
    error = relative(sample(patched, size=SIZE), plain)
    step = next(iter(runs(patched)[0].steps.values()))
    weight = model.model.diffusion_model.blocks[0].self_attn.q.weight.dtype
    return {"relative": error, "sparse": step.sparse, "dense": step.dense, "weight": str(weight)}


def case_no_recorded_tensors():
    """A report keeps numbers only: nothing in the recorder holds a tensor."""
    patched = apply(MODEL, FULL_TILES)
    sample(patched, size=SIZE)
    recorder = patched.get_attachment("fpsattention").recorder
    found = [v for run in recorder.runs for s in run.steps.values() for v in vars(s).values() if torch.is_tensor(v)]
    return len(found)


run_cases(globals())
