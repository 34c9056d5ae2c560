"""Good neighbors: every kind of node that touches a Wan model beside ours, on the real host, in both orders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import fps_stand_ins as stand_ins
import torch
from fps_common import (
    apply,
    conditioning,
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
from fps_tiny import tiny_wan
from safetensors.torch import save_file

import nodes

SIZE = (3, 12, 16)
STEPS, LAYERS = 4, 3
WINDOW = "0.00 bf16 - 1 1 1"
# Four steps under shift 8 stand at 1.000, 0.960, 0.889 and 0.727.
THREE = "0.98 dense\n0.90 bf16 - 1 1 1\n0.00 fp8 x1 60% all all"

MODEL = shifted(model_of())


def run(model: Any, steps: int = STEPS, **options: Any) -> torch.Tensor:
    return sample(model, size=SIZE, steps=steps, **options)


def total(model: Any, which: int = -1) -> dict:
    recorded = run_summary(runs(model)[which])
    reasons: dict[str, int] = {}
    for step in recorded["steps"]:
        for reason, calls in step["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + calls
    return {
        "sparse": [s["sparse"] for s in recorded["steps"]],
        "dense": [s["dense"] for s in recorded["steps"]],
        "blocks": [len(s.blocks) for s in sorted(runs(model)[which].steps.values(), key=lambda s: -s.sigma)],
        "reasons": reasons,
        "notes": recorded["notes"],
        "stopped": runs(model)[which].stopped,
    }


def both(neighbor: Callable, *, model: Any = MODEL, text: str = WINDOW, **options: Any) -> dict:
    """Ours after the neighbor and before it: what ran, whether a dense schedule changes nothing, and whether the order
    does."""
    alone = run(neighbor(model, []), **options)
    found, latents = {}, []
    for order in ("before", "after"):

        def built(schedule: str, seen: list, order: str = order) -> Any:
            return (
                apply(neighbor(model, seen), schedule) if order == "before" else neighbor(apply(model, schedule), seen)
            )

        dense_equal = torch.equal(run(built("0.00 dense", []), **options), alone)
        seen: list = []
        patched = built(text, seen)
        latents.append(run(patched, **options))
        found[order] = {
            "dense_equal": dense_equal,
            "finite": bool(latents[-1].isfinite().all()),
            "changed": relative(latents[-1], alone),
            "seen": len(seen),
        } | total(patched)
    return found | {"orders_differ": relative(latents[0], latents[1])}


def case_alone():
    return both(lambda model, seen: model)


def case_attention_backend():
    return both(stand_ins.plain_backend)


def case_other_sparse_attention():
    return both(stand_ins.other_sparse)


def case_control_patches():
    return both(stand_ins.attention_patches)


def case_block_control():
    return both(stand_ins.block_control)


def case_patched_self_attention():
    return both(partial(stand_ins.patched_forward, own=False))


def case_own_self_attention():
    return both(partial(stand_ins.patched_forward, own=True))


def case_own_self_attention_where_text_is_as_long():
    """Then the first call that the hook sees may be the text's: dense, never guessed."""
    patched = apply(stand_ins.patched_forward(MODEL, [], own=True), WINDOW)
    options = {"size": (2, 32, 32), "steps": 1}
    equal = torch.equal(sample(patched, **options), sample(stand_ins.patched_forward(MODEL, [], own=True), **options))
    return {"equal": equal} | total(patched)


def case_caching_forward():
    return both(stand_ins.cached_forward)


def case_block_swap():
    return both(stand_ins.swapped_blocks)


def _node_cache(node: Any, model: Any, seen: list) -> Any:
    del seen
    return node.execute(model, 3.0, 0.15, 0.95, False).result[0]


def case_easycache():
    from comfy_extras.nodes_easycache import EasyCacheNode

    return both(partial(_node_cache, EasyCacheNode), steps=8)


def case_lazycache():
    from comfy_extras.nodes_easycache import LazyCacheNode

    return both(partial(_node_cache, LazyCacheNode), steps=8)


def case_cache_report():
    """A cache behind ours answers steps of dense and of sparse phases; only what was computed counts."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    text, found = pack_module("nodes.report_text"), {}
    for phases in ("0.80 dense\n0.00 bf16 - 1 1 1", "0.80 bf16 - 1 1 1\n0.00 dense"):
        patched = _node_cache(EasyCacheNode, apply(MODEL, phases), [])
        run(patched, steps=12)
        steps = run_summary(runs(patched)[-1])["steps"]
        found[phases.split()[1]] = {
            "steps": [(step["attention"], step["sparse"], step["dense"], step["skipped"]) for step in steps],
            "text": text.report_text(patched.get_attachment("fpsattention").settings, runs(patched), {}),
        }
    return found


def case_area():
    """A prompt for a part of the picture: model calls of one step have two grids."""
    prompts = [*conditioning(1), [conditioning(2)[0][0], {"area": (8, 8, 0, 0), "strength": 1.0}]]
    latent = torch.zeros(1, 16, *SIZE)
    m = apply(MODEL, WINDOW)
    comfy.sample.sample(
        m, comfy.sample.prepare_noise(latent, 7), 2, 1.0, "euler", "simple", prompts, conditioning(0), latent,
        disable_pbar=True, seed=7,
    )  # fmt: skip
    return run_summary(runs(m)[-1])


def case_skip_layer_guidance():
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def skip(model, seen):
        return SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "", 0.0).result[0]

    return both(skip, cfg=3.0)


def case_context_windows():
    from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

    def windows(model, seen):
        return WanContextWindowsManualNode.execute(model, 9, 1, "standard_static", 1, False, "pyramid", False).result[0]

    alone = sample(windows(MODEL, []), size=(7, 12, 16), steps=2)
    found = {}
    for order in ("before", "after"):
        make = {"before": lambda t: apply(windows(MODEL, []), t), "after": lambda t: windows(apply(MODEL, t), [])}
        equal = torch.equal(sample(make[order]("0.00 dense"), size=(7, 12, 16), steps=2), alone)
        patched = make[order](WINDOW)
        out = sample(patched, size=(7, 12, 16), steps=2)
        found[order] = {"dense_equal": equal, "finite": bool(out.isfinite().all())} | total(patched)
    return found


def _lora(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(LAYERS):
        for part in ("self_attn.q", "self_attn.v", "ffn.0"):
            name, rows = f"diffusion_model.blocks.{i}.{part}", 512 if part == "ffn.0" else 256
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, 256, generator=generator) * 0.05
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.3
    return tensors


def _with_lora(model: Any, seen: list) -> Any:
    del seen
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        save_file(_lora(), Path(folder) / "few.safetensors")
        folder_paths.add_model_folder_path("loras", folder)
        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, "few.safetensors", 1.0)[0]


def case_lora():
    found = both(_with_lora)
    return found | {"lora_changes": relative(run(_with_lora(MODEL, [])), run(MODEL))}


def case_few_step_lora():
    """Four steps, no guidance, LCM: only the first step is dense."""
    text = pack_module("kernels.presets").PRESETS["few-step"]
    return both(_with_lora, text=text, sampler="lcm")


def case_low_memory():
    """The host keeps most weights away from the device and brings each for its layer."""
    from comfy.model_patcher import ModelPatcher

    whole, loaded = ModelPatcher.partially_load, []

    def little(self, device, extra_memory=0, force_patch_weights=False):
        loaded.append(self.load(device, lowvram_model_memory=1_000_000, force_patch_weights=force_patch_weights))
        return self.model.model_loaded_weight_memory

    expected = run(_with_lora(apply(MODEL, WINDOW), []))
    ModelPatcher.partially_load = little
    try:
        fresh = shifted(model_of())
        found = both(_with_lora, model=fresh)
        patched = _with_lora(apply(fresh, WINDOW), [])
        same = relative(run(patched), expected)
        return found | {"partly": bool(fresh.model.model_lowvram), "loads": len(loaded), "same": same}
    finally:
        ModelPatcher.partially_load = whole


def _scaled(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """FP8 weights with a scale each, as the scaled files that circulate have them."""
    state = {}
    for name, tensor in tiny_wan().items():
        if name.endswith("weight") and tensor.ndim == 2 and name.startswith("blocks."):
            scale = tensor.abs().max() / torch.finfo(dtype).max
            state[name] = (tensor / scale).to(dtype)
            state[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
        else:
            state[name] = tensor
    return state | {"scaled_fp8": torch.empty(0, dtype=dtype)}


def case_scaled_fp8_weights():
    model = shifted(comfy.sd.load_diffusion_model_state_dict(_scaled(torch.float8_e4m3fn)))
    found = both(lambda m, seen: m, model=model)
    return found | {"near": relative(run(model), run(MODEL))}


def case_fp8_weights():
    options = {"dtype": torch.float8_e4m3fn}
    model = shifted(comfy.sd.load_diffusion_model_state_dict(tiny_wan(), model_options=options))
    return both(lambda m, seen: m, model=model) | {"near": relative(run(model), run(MODEL))}


def case_packed_weights():
    options = {"custom_operations": stand_ins.PackedOps}
    model = shifted(comfy.sd.load_diffusion_model_state_dict(tiny_wan(), model_options=options))
    return both(lambda m, seen: m, model=model) | {"near": relative(run(model), run(MODEL))}


def case_two_of_ours():
    """The later wins, bit for bit, and says so; the same again says nothing."""
    expected = run(apply(MODEL, WINDOW))
    twice = apply(apply(MODEL, THREE), WINDOW)
    equal = torch.equal(run(twice), expected)
    again = apply(apply(MODEL, WINDOW), WINDOW)
    run(again)
    text = load_pack()["FPSAttentionReport"].execute({"samples": torch.zeros(1)}, twice).result[1]
    return {"equal": equal, "text": text, "again": total(again)["notes"]} | total(twice)


def case_merging():
    """Merged with another model the patch stays where it came from, first or second."""
    from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeSimple

    other = shifted(model_of(seed=5))
    found = {}
    for name, merge in (("simple", lambda a, b: ModelMergeSimple().merge(a, b, 0.5)[0]),
                        ("add", lambda a, b: ModelAdd().merge(a, b)[0])):  # fmt: skip
        merged = merge(apply(MODEL, WINDOW), other)
        expected = run(apply(merge(MODEL, other), WINDOW))
        found[name] = {"equal": torch.equal(run(merged), expected)} | total(merged)
        second = merge(other, apply(MODEL, WINDOW))
        found[name]["second_is_plain"] = torch.equal(run(second), run(merge(other, MODEL)))
    return found


def case_clones():
    """A clone runs the same patch and shares the record; patching the clone leaves the original as it was."""
    first = apply(MODEL, WINDOW)
    clone = first.clone()
    same = torch.equal(run(first), run(clone))
    changed = apply(clone, "0.00 dense")
    dense = torch.equal(run(changed), run(MODEL))
    still = torch.equal(run(first), run(clone))
    return {"same": same, "dense": dense, "still": still, "runs": len(runs(first)), "apart": len(runs(changed))}


def _failing(error: Callable, after: int) -> Callable:
    calls: list = []

    def patch(args, extra):
        calls.append(1)
        if len(calls) == after:
            error()
        return extra["original_block"](args)

    return patch


def _stopped(raised: type, error: Callable, callback: Callable | None = None) -> dict:
    """A run that ends in its second step: what the record and the report say, and the next run."""
    expected = run(apply(MODEL, THREE))
    patched = apply(MODEL, THREE)
    failing = patched.clone()
    if callback is None:
        options = failing.model_options["transformer_options"]["patches_replace"]["dit"]
        inner = options[("double_block", 1)]
        patch = _failing(error, 2)
        failing.set_model_patch_replace(
            lambda args, extra: inner(args, {"original_block": lambda a: patch(a, extra)}), "dit", "double_block", 1
        )
    caught = None
    noise = comfy.sample.prepare_noise(torch.zeros(1, 16, *SIZE), 7)
    try:
        comfy.sample.sample(
            failing, noise, STEPS, 1.0, "euler", "simple", conditioning(1), conditioning(0),
            torch.zeros(1, 16, *SIZE), disable_pbar=True, callback=callback,
        )  # fmt: skip
    except raised as stop:
        caught = type(stop).__name__
    comfy.model_management.interrupt_current_processing(False)
    recorder = patched.get_attachment("fpsattention").recorder
    clean = recorder._open is None and not recorder.clock._pending
    left = [key for key in ("fpsattention", stand_ins.OVERRIDE) if key in patched.model_options["transformer_options"]]
    text = load_pack()["FPSAttentionReport"].execute({"samples": torch.zeros(1)}, patched).result[1]
    stopped = total(patched)
    again = run(patched)
    return {
        "caught": caught, "clean": clean, "left": left, "text": text, "equal": torch.equal(again, expected),
        "stopped": stopped, "next": total(patched), "report": len(runs(patched)),
    }  # fmt: skip


def case_out_of_memory():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    return _stopped(torch.cuda.OutOfMemoryError, fail)


def case_cancelled():
    return _stopped(
        comfy.model_management.InterruptProcessingException,
        lambda: comfy.model_management.interrupt_current_processing(True),
    )


def case_cancelled_between_steps():
    def stop(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException

    return _stopped(comfy.model_management.InterruptProcessingException, None, stop)


def case_a_batch_with_a_broken_sigma():
    """A sampler's NaN reaches the model as it is: dense, with the reason, and no exception of ours."""
    from comfy.patcher_extension import WrappersMP

    patched = apply(MODEL, WINDOW)

    def broken(executor, *args, **kwargs):
        args[5]["sigmas"] = torch.tensor([float("nan")])
        return executor(*args, **kwargs)

    patched.wrappers[WrappersMP.DIFFUSION_MODEL] = {
        "broken": [broken], **patched.wrappers[WrappersMP.DIFFUSION_MODEL]
    }  # fmt: skip
    equal = torch.equal(run(patched), run(MODEL))
    return {"equal": equal} | total(patched)


run_cases(globals())
