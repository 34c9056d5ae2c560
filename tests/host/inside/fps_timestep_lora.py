"""Timestep-aware LoRA on the real host: which LoRA acts when, against the merged oracle, and what stays behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from fps_common import apply, conditioning, model_of, pack_module, relative, run_cases, runs, sample, shifted
from fps_talora import (
    HubFile,
    acting,
    adapt,
    in_blocks,
    linears,
    oracle,
    pair,
    recorded,
    traces,
    watched,
)

SIZE = (2, 8, 8)
RUNS = {
    "4 euler simple": (4, "euler", "simple", 8.0),
    "4 lcm sgm_uniform": (4, "lcm", "sgm_uniform", 5.0),
    "20 uni_pc simple": (20, "uni_pc", "simple", 5.0),
    "20 heun beta": (20, "heun", "beta", 3.0),
    "20 dpmpp_2m normal": (20, "dpmpp_2m", "normal", 8.0),
    "50 euler simple": (50, "euler", "simple", 3.0),
    "50 uni_pc beta": (50, "uni_pc", "beta", 8.0),
}


def sampled(model: Any, steps: int, sampler: str, scheduler: str, cfg: float = 1.0) -> torch.Tensor:
    latent = torch.zeros(1, 16, *SIZE)
    noise = comfy.sample.prepare_noise(latent, 7)
    texts = conditioning(1, 32), conditioning(0, 32)
    return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, *texts, latent, disable_pbar=True)


def compared(model: Any, right: Any, file: HubFile, call: Any) -> dict:
    """Sample both; say how far they are apart, what ran, and what should have by the sampler's own sigmas."""
    seen: list[float] = []
    adapted = adapt(model, file)
    truth, expected_sigmas = oracle(right, (file, 1.0))
    plain = call(model)
    out, expected = call(watched(adapted, seen)), call(truth)
    steps = {sigma: chosen[0] for run in recorded(adapted) for sigma, chosen in run.items()}
    return {
        "relative": relative(out, expected),
        "changed": relative(expected, plain),
        "calls": seen == expected_sigmas,
        "ran": steps == {round(sigma, 6): file.index(sigma) for sigma in seen},
        "loras": [steps[sigma] for sigma in sorted(steps, reverse=True)],
        "traces": traces(model),
        "again": torch.equal(call(model), plain),
    }


def case_switches() -> dict:
    first, second = pair(layers=2)
    file = HubFile("switches", linears(first, in_blocks))
    found = {}
    for name, (*choices, shift) in RUNS.items():
        call = partial(
            sampled, steps=choices[0], sampler=choices[1], scheduler=choices[2], cfg=1.0 + 2 * (shift == 5.0)
        )
        found[name] = compared(shifted(first, shift), shifted(second, shift), file, call)
        # The oracle wrote into its weights.
        second = model_of(layers=2)
    return found


def case_two_stages() -> dict:
    """Two samplers, one after the other, as KSampler (Advanced) calls them."""
    first, second = (shifted(model) for model in pair(layers=2))
    file = HubFile("stages", linears(first, in_blocks))

    def call(model: Any) -> torch.Tensor:
        half = sample(model, size=SIZE, steps=8, start_step=0, last_step=3, tokens=32)
        return sample(model, size=SIZE, steps=8, start_step=3, latent=half, disable_noise=True, tokens=32)

    return compared(first, second, file, call)


def case_every_linear() -> dict:
    """A hub for every linear layer of the model: time, text and head as well; guidance in one batch."""
    first, second = (shifted(model) for model in pair(layers=1))
    return compared(first, second, HubFile("all", linears(first)), lambda m: sample(m, size=SIZE, steps=4, cfg=4.0))


def case_image_to_video() -> dict:
    class ClipVision:
        penultimate_hidden_states = torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(5))

    first, second = (shifted(model) for model in pair(kind="i2v", layers=1))
    extra = {"clip_vision_output": ClipVision(), "concat_latent_image": torch.ones(1, 16, *SIZE)}
    file = HubFile("i2v", linears(first, in_blocks))
    return compared(first, second, file, lambda m: sample(m, size=SIZE, steps=4, extra=extra))


def case_other_wans() -> dict:
    """Tokens in front and behind, control blocks, other channels: layers of the main blocks and of their own."""
    import comfy.ldm.wan.model as wan
    import comfy.sd
    from fps_states import state_of, widened
    from fps_tiny import tiny_wan

    load = comfy.sd.load_diffusion_model_state_dict
    latent = torch.randn(1, 16, 1, *SIZE[1:], generator=torch.Generator().manual_seed(3))
    audio = torch.randn(1, SIZE[0], 8, 5, 1280, generator=torch.Generator().manual_seed(4))
    kinds = {
        "vace": (lambda: load(state_of(wan.VaceWanModel, in_dim=16, out_dim=16, vace_layers=1, vace_in_dim=96)), {}),
        "camera": (lambda: load(state_of(wan.CameraWanModel, in_dim=32, out_dim=16)), {}),
        "fun": (lambda: model_of("fun_ref"), {"extra": {"reference_latents": [latent]}}),
        "phantom": (model_of, {"extra": {"time_dim_concat": latent}}),
        "humo": (
            lambda: load(state_of(wan.HumoWanModel, in_dim=16, out_dim=16)),
            {"extra": {"reference_latents": [latent], "audio_embed": audio}},
        ),
        "wan2.2 5b": (lambda: load(widened(tiny_wan(), 48, 48)), {"channels": 48}),
    }
    found = {}
    for name, (make, options) in kinds.items():
        first, second = shifted(make()), shifted(make())
        file = HubFile(f"kind {name}", linears(first, lambda n: "blocks." in n))
        call = partial(sample, size=SIZE, steps=4, **options)
        found[name] = compared(first, second, file, call) | {"class": type(first.model.diffusion_model).__name__}
    return found


def case_strengths() -> dict:
    first, second = (shifted(model) for model in pair(layers=2))
    file = HubFile("strengths", linears(first, in_blocks))
    truth, _ = oracle(second, (file, -0.5))
    plain = sample(first, size=SIZE, steps=4)
    none = adapt(first, file, 0.0)
    return {
        "half": relative(sample(adapt(first, file, -0.5), size=SIZE, steps=4), sample(truth, size=SIZE, steps=4)),
        "none": torch.equal(sample(none, size=SIZE, steps=4), plain) and none is first,
    }


def case_a_chain_adds_up() -> dict:
    """Two nodes, with tables and layers of their own."""
    first, second = (shifted(model) for model in pair(layers=2))
    one = HubFile("one", linears(first, in_blocks))
    other = HubFile("other", linears(first, lambda n: "attn" in n), rows=((0.9, 1), (0.0, 0)), hub=2, rank=2, seed=9)
    chain = adapt(adapt(first, one), other, 0.5)
    truth, sigmas = oracle(second, (one, 1.0), (other, 0.5))
    error = relative(sample(chain, size=SIZE, steps=8), sample(truth, size=SIZE, steps=8))
    (steps,) = recorded(chain)
    expected = {round(sigma, 6): (one.index(sigma), other.index(sigma)) for sigma in sigmas}
    return {"relative": error, "ran": steps == expected, "traces": traces(first), "models": _managed(chain)}


def _managed(model: Any) -> list[str]:
    return [type(m.model).__name__ for m in model.get_nested_additional_models()]


def case_clones_do_not_mix() -> dict:
    """Plain, with one hub, with another, and with both, each twice and in turn: what comes before changes nothing."""
    model = shifted(model_of(layers=2))
    one = HubFile("mix1", linears(model, in_blocks))
    other = HubFile("mix2", linears(model, in_blocks), seed=5)
    clones = [model, adapt(model, one), adapt(model, other), adapt(adapt(model, one), other)]
    first = [sample(clone, size=SIZE, steps=4) for clone in clones]
    second = [sample(clone, size=SIZE, steps=4) for clone in (*clones[::-1],)][::-1]
    distances = [relative(a, b) for n, a in enumerate(first) for b in first[:n]]
    return {
        "same": [torch.equal(a, b) for a, b in zip(first, second)],
        "apart": min(distances),
        "traces": traces(model),
    }


def case_an_error_leaves_nothing() -> dict:
    model = shifted(model_of(layers=2))
    adapted = adapt(model, HubFile("error", linears(model, in_blocks)))
    plain = sample(model, size=SIZE, steps=4)

    def fail(func, *args, **kwargs):
        raise RuntimeError("planted")

    broken = adapted.clone()
    broken.model_options["transformer_options"]["optimized_attention_override"] = fail
    try:
        sample(broken, size=SIZE, steps=4)
        raised = False
    except RuntimeError as error:
        raised = "planted" in str(error)
    return {"raised": raised, "traces": traces(model), "same": torch.equal(sample(model, size=SIZE, steps=4), plain)}


def case_low_memory() -> dict:
    """A host that finds room for next to nothing: layers and LoRAs stay where they are and are fetched when used."""
    model = shifted(model_of(layers=2))
    file = HubFile("little", linears(model, in_blocks))
    expected = sample(adapt(model, file), size=SIZE, steps=4)
    fresh = shifted(model_of(layers=2))
    adapted = adapt(fresh, file)
    whole = ModelPatcher.partially_load

    def little(self, device, extra_memory=0, force_patch_weights=False):
        self.unpatch_model(self.offload_device, unpatch_weights=False)
        self.patch_model(load_weights=False)
        self.load(device, lowvram_model_memory=100_000, force_patch_weights=force_patch_weights)
        return 0

    ModelPatcher.partially_load = little
    try:
        out = sample(adapted, size=SIZE, steps=4)
    finally:
        ModelPatcher.partially_load = whole
    (patcher,) = adapted.get_nested_additional_models()
    return {
        "same": torch.equal(out, expected),
        "partly": [bool(fresh.model.model_lowvram), bool(patcher.model.model_lowvram)],
        "loaded": [patcher.loaded_size(), patcher.model_size()],
        "dtype": str(patcher.model_dtype()),
    }


def case_weights_of_eight_bits() -> dict:
    """FP8 weights: the LoRA is added in the dtype of the computation, the weights stay as they are."""
    import comfy.sd
    from fps_tiny import tiny_wan

    load, options = comfy.sd.load_diffusion_model_state_dict, {"dtype": torch.float8_e4m3fn}
    first = shifted(load(tiny_wan(layers=2), model_options=options))
    # What the host rounded, it rounds no further.
    second = shifted(load({n: t.float() for n, t in first.model.diffusion_model.state_dict().items()}))
    file = HubFile("eight", linears(first, in_blocks))
    found = compared(first, second, file, lambda m: sample(m, size=SIZE, steps=4))
    return found | {"weights": str(first.model.diffusion_model.blocks[0].ffn[0].weight.dtype)}


def case_half_precision() -> dict:
    """A bf16 model: the hub goes along, and the error is that of bf16."""
    import comfy.sd
    from fps_tiny import tiny_wan

    state = {n: t.to(torch.bfloat16) for n, t in tiny_wan(layers=2).items()}
    load = comfy.sd.load_diffusion_model_state_dict
    first = shifted(load(dict(state), model_options={"dtype": torch.bfloat16}))
    second = shifted(load({n: t.float() for n, t in state.items()}, model_options={"dtype": torch.float32}))
    first.model.manual_cast_dtype = None
    file = HubFile("half", linears(first, in_blocks))
    found = compared(first, second, file, lambda m: sample(m, size=SIZE, steps=2))
    plain = relative(sample(first, size=SIZE, steps=2), sample(model_in(second, state), size=SIZE, steps=2))
    (patcher,) = adapt(first, file).get_nested_additional_models()
    return found | {"plain": plain, "dtype": str(patcher.model_dtype())}


def model_in(model: Any, state: dict) -> Any:
    """``model`` with the weights of ``state`` again."""
    model.model.diffusion_model.load_state_dict({n: t.float() for n, t in state.items()})
    return model


def case_several_sigmas_in_a_batch() -> dict:
    """Every sample gets the LoRA of its own sigma, as if it were alone."""
    model = model_of(layers=2)
    adapted = adapt(model, HubFile("batch", linears(model)))
    options = dict(adapted.model_options["transformer_options"], wrappers=adapted.wrappers)
    x, context = torch.randn(4, 16, *SIZE), torch.randn(4, 32, 4096)
    sigmas = torch.tensor([0.95, 0.4, 0.95, 0.1])

    def call(rows: slice) -> torch.Tensor:
        fresh = dict(options, sigmas=sigmas[rows])
        return model.model.apply_model(x[rows], sigmas[rows], c_crossattn=context[rows], transformer_options=fresh)

    together = call(slice(0, 4))
    alone = torch.cat([call(slice(n, n + 1)) for n in range(4)])
    return {"relative": relative(together, alone), "loras": sorted(recorded(adapted)[0].items())}


def case_no_sigma() -> dict:
    model = model_of(layers=2)
    adapted = adapt(model, HubFile("silent", linears(model)))
    options = dict(adapted.model_options["transformer_options"], wrappers=adapted.wrappers)
    x, context = torch.randn(1, 16, *SIZE), torch.randn(1, 32, 4096)
    sigma = torch.tensor([float("nan")])
    for _ in range(2):
        model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=dict(options))
    return {"notes": [run.notes for run in acting(adapted).record.runs], "traces": traces(model)}


def case_with_our_attention() -> dict:
    """A sparse schedule before and behind the LoRA: the same, and other than either alone."""
    model = shifted(model_of(layers=2))
    file = HubFile("sparse", linears(model, in_blocks))
    text = "0.98 dense\n0.00 bf16 - 1 1 1"
    before, behind = adapt(apply(model, text), file), apply(adapt(model, file), text)
    size = (3, 12, 16)
    outs = [sample(m, size=size, steps=4) for m in (before, behind)]
    alone = [sample(m, size=size, steps=4) for m in (apply(model, text), adapt(model, file))]
    second = shifted(model_of(layers=2))
    truth, _ = oracle(second, (file, 1.0))
    return {
        "equal": torch.equal(*outs),
        "relative": relative(sample(apply(truth, text), size=size, steps=4), outs[0]),
        "apart": min(relative(one, outs[0]) for one in alone),
        "sparse": [step.sparse for step in runs(before)[0].steps.values()],
        "report": _report(before),
    }


def _report(model: Any) -> list[str]:
    from fps_common import load_pack

    return load_pack()["FPSAttentionReport"].execute(latent={"samples": None}, model=model).result[1].splitlines()


def case_with_a_stock_lora() -> dict:
    """An ordinary LoRA on top: patched into the weights by the host, in either order."""
    import comfy.sd

    model = shifted(model_of(layers=2))
    file = HubFile("stock", linears(model, in_blocks))
    generator = torch.Generator().manual_seed(2)
    down, up = torch.randn(4, 256, generator=generator) / 16, torch.randn(256, 4, generator=generator) / 4
    name = "blocks.0.self_attn.q"
    stock = {f"diffusion_model.{name}.lora_down.weight": down, f"diffusion_model.{name}.lora_up.weight": up}
    add = lambda m: comfy.sd.load_lora_for_models(m, None, dict(stock), 1.0, 0)[0]  # noqa: E731
    second = model_of(layers=2)
    second.model.diffusion_model.get_submodule(name).weight.data += up @ down
    truth, _ = oracle(shifted(second), (file, 1.0))
    expected = sample(truth, size=SIZE, steps=4)
    outs = [sample(m, size=SIZE, steps=4) for m in (add(adapt(model, file)), adapt(add(model), file))]
    return {"relative": [relative(out, expected) for out in outs], "traces": traces(model)}


def case_another_nodes_forward_comes_back() -> dict:
    """A layer whose forward somebody else replaced, as the host's own bypass LoRA does: used, and put back."""
    model = shifted(model_of(layers=2))
    adapted = adapt(model, HubFile("theirs", linears(model, in_blocks)))
    layer = model.model.diffusion_model.blocks[0].ffn[0]
    calls, whole = [], layer.forward

    def theirs(x):
        calls.append(1)
        return whole(x)

    layer.forward = theirs
    try:
        sample(adapted, size=SIZE, steps=2)
        return {"calls": len(calls), "back": vars(layer).get("forward") is theirs, "traces": traces(model)}
    finally:
        del layer.forward


def case_names() -> dict:
    import comfy.patcher_extension

    patch = pack_module("nodes.timestep_lora_patch")
    return {"apply_model": patch.APPLY_MODEL == comfy.patcher_extension.WrappersMP.APPLY_MODEL}


run_cases(globals())
