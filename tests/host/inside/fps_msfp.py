"""Load MSFP Wan on the real host: equal to the dequantized model, in every way that the host loads and patches it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from fps_common import apply, load_pack, model_of, pack_module, relative, run_cases, runs, sample, shifted
from fps_msfp_models import (
    AS_TRAINED,
    FOLDER,
    FULL_PRECISION,
    dequantized,
    forward,
    load,
    loaded,
    lora,
    ordinary,
    packed_file,
    packed_layers,
    state_of_layers,
    velocity,
    with_lora,
)
from safetensors.torch import load_file, save_file

KINDS = ("t2v", "i2v", "flf")
CPU = torch.device("cpu")


def case_velocity() -> dict:
    """Every file in both modes: saved for the trainer's side, and against the same values in the host's own model."""
    found = {}
    for kind in KINDS:
        for mode in (AS_TRAINED, FULL_PRECISION):
            model = load(f"{kind}.safetensors", mode)
            out, expected = velocity(model, kind), velocity(ordinary(f"{kind}.safetensors", mode), kind)
            save_file({"velocity": out.contiguous()}, FOLDER / f"{kind} {mode}.out")
            found[f"{kind} {mode}"] = {
                "equal": torch.equal(out, expected), "class": type(model.model.model_config).__name__,
                "packed": len(packed_layers(model)), "patcher": type(model).__name__,
            }  # fmt: skip
    return found


def case_layers() -> dict:
    """Every packed layer on the input that the trainer's saw: the outputs, by layer, saved for its side."""
    for kind in KINDS:
        layers = packed_layers(load(f"{kind}.safetensors"))
        seen = load_file(FOLDER / f"{kind}.layers")
        outs = {name: layers[f"diffusion_model.{name}"](x).contiguous() for name, x in seen.items()}
        save_file(outs, FOLDER / f"{kind}.layers.out")
    return {"kinds": len(KINDS)}


def case_half_precision() -> dict:
    """A bf16 file computes as the host's own bf16 model does."""
    model = load("half.safetensors")
    assert {str(m.weight.dtype) for m in packed_layers(model).values()} == {"torch.bfloat16"}
    return {"equal": torch.equal(velocity(model), velocity(ordinary("half.safetensors")))}


def case_sizes() -> dict:
    """What the host believes that the model takes, and what its tensors take."""
    model = load()
    layers = packed_layers(model).values()
    tensors = [t for m in layers for t in (m.weight._qdata, m.weight._params.scale, m.weight._params.zero)]
    names = {f"{name}.weight" for name in packed_layers(model)}
    plain = [p for name, p in model.model.named_parameters() if name not in names]
    size = sum(t.nbytes for t in [*tensors, *plain, *model.model.buffers()] if t is not None)
    listed = sum(entry[-4] for entry in model._load_list())
    return {"size": size, "told": model.model_size(), "clone": model.clone().model_size(), "listed": listed}


def case_mapped() -> dict | None:
    """How many packed layers have their codes in a mapping of the file itself; None where the system cannot tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    layers = packed_layers(load())
    ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith("/t2v.safetensors")]
    inside = [
        any(int(start, 16) <= m.weight._qdata.data_ptr() < int(end, 16) for start, end in ranges)
        for m in layers.values()
    ]
    return {"layers": len(layers), "mapped": sum(inside)}


def case_lora() -> dict:
    """A LoRA on the whole model, at half strength, two of them: as on the dequantized model."""
    found = {}
    for mode in (AS_TRAINED, FULL_PRECISION):
        model, right = load(activations=mode), ordinary(activations=mode)
        before, plain = state_of_layers(model), velocity(model)
        for name, add in (
            ("whole", lambda m: with_lora(m)),
            ("half", lambda m: with_lora(m, 0.5)),
            ("two", lambda m: with_lora(with_lora(m), -0.7, seed=4)),
        ):
            out, expected = velocity(add(model)), velocity(add(right))
            found[f"{name}, {mode}"] = {"relative": relative(out, expected), "changed": relative(expected, plain)}
        again = velocity(model)
        found[f"after, {mode}"] = {
            "equal": torch.equal(again, plain), "state": state_of_layers(model) == before,
            "on_layers": any(m.on_the_fly for m in packed_layers(model).values()),
        }  # fmt: skip
    return found


def case_little_memory() -> dict:
    """Nothing, some and nearly all of the model on the device, with and without a LoRA: the same numbers."""
    found = {}
    for name, add in (("plain", lambda m: m), ("lora", with_lora)):
        model = load()
        expected = velocity(add(model))
        model.unpatch_model(CPU)
        for budget in (1, 1_500_000, 9_000_000):
            m = add(model)
            m.patch_model(CPU, lowvram_model_memory=budget)
            away = sum(bool(x.weight_function) for x in packed_layers(m).values())
            found[f"{name}, {budget}"] = {
                "equal": torch.equal(forward(m), expected), "partly": m.model.model_lowvram, "away": away,
            }  # fmt: skip
            m.unpatch_model(CPU)
        found[f"{name}, after"] = {"equal": torch.equal(velocity(add(model)), expected)}
    return found


def case_moves() -> dict:
    """Loaded whole, partly unloaded, loaded again, as memory comes and goes: a LoRA acts once all the time."""
    found = {}
    for name, add in (("plain", lambda m: m), ("lora", with_lora)):
        model = add(load())
        expected, steps = velocity(model), []
        for change in (
            lambda m=model: m.partially_unload(CPU, 400_000),
            lambda m=model: m.partially_unload(CPU, 4_000_000),
            lambda m=model: m.partially_load(CPU, 500_000),
            lambda m=model: m.partially_load(CPU, 3_000_000),
            lambda m=model: m.partially_load(CPU, 1e12),
        ):
            change()
            attached = sum(m.on_the_fly is not None for m in packed_layers(model).values())
            away = sum(bool(m.weight_function) for m in packed_layers(model).values())
            steps.append((torch.equal(forward(model), expected), attached, away))
        model.detach()
        found[name] = {"steps": steps, "left": any(m.on_the_fly for m in packed_layers(model).values())}
    return found


def case_clones() -> dict:
    """Clones of one model with different LoRAs, in turn: each its own numbers, the codes the file's all the time."""
    base = load()
    before = state_of_layers(base)
    models = {"base": base, "one": with_lora(base), "two": with_lora(base, seed=4)}
    first = {name: velocity(model) for name, model in models.items()}
    order = ("two", "base", "one", "one", "base", "two")
    same = [torch.equal(velocity(models[name]), first[name]) for name in order]
    apart = [relative(first["one"], first["base"]), relative(first["two"], first["one"])]
    clone = models["one"].clone()
    same.append(torch.equal(velocity(clone), first["one"]))
    kinds = {type(model).__name__ for model in (*models.values(), clone)}
    base.unpatch_model(CPU)
    return {"same": same, "apart": apart, "state": state_of_layers(base) == before, "kinds": sorted(kinds)}


def case_bypass_lora() -> dict:
    """The host's other LoRA loader, which adds to outputs, with inputs as they are."""
    model, right = load(activations=FULL_PRECISION), ordinary(activations=FULL_PRECISION)
    outs = []
    for m in (model, right):
        patched, _ = comfy.sd.load_bypass_lora_for_models(m, None, lora(), 1.0, 0.0)
        comfy.model_management.load_models_gpu([patched])
        with_it = sample(shifted(patched), size=(2, 8, 8))
        outs.append(with_it)
    return {"relative": relative(*outs), "changed": relative(outs[0], sample(shifted(model), size=(2, 8, 8)))}


def case_merged() -> dict:
    """Merged with an ordinary model, first or second: as the dequantized one is."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other, found = model_of(seed=5), {}
    for name, pair in (("first", lambda m: (m, other)), ("second", lambda m: (other, m))):
        mine, right = (
            velocity(ModelMergeSimple().merge(*pair(m), 0.3)[0])
            for m in (load(activations=FULL_PRECISION), ordinary(activations=FULL_PRECISION))
        )
        found[name] = {"relative": relative(mine, right), "changed": relative(right, velocity(other))}
    return found


def _sentence(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def case_refused_on_the_model() -> dict:
    """What would write over codes, or save them as what they are not."""
    model = load()
    plain = velocity(model)
    hooked = model.clone()
    hooks = comfy.hooks.create_hook_lora(lora=lora(), strength_model=1.0, strength_clip=0.0)
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    hooked.register_all_hook_patches(hooks, target)
    said = {"hooks": _sentence(lambda: hooked.patch_hooks(hooks))}
    hooked.detach()
    said["saving"] = _sentence(lambda: comfy.sd.save_checkpoint(str(FOLDER / "saved.safetensors"), model))
    said["nothing saved"] = not (FOLDER / "saved.safetensors").exists()
    said["extracting"] = _sentence(lambda: _extracted(model, model_of(seed=5)))
    said["equal"] = torch.equal(velocity(model), plain)
    return said


def _extracted(model, subtracted) -> dict[str, torch.Tensor]:
    """The difference of two models, as *Extract and Save Lora* finds it."""
    from comfy_extras.nodes_lora_extract import LORAType, calc_lora_model
    from comfy_extras.nodes_model_merging import ModelSubtract

    rest = "diffusion_model.", "", {}, LORAType.FULL_DIFF
    return calc_lora_model(ModelSubtract().merge(model, subtracted, 1.0)[0], 4, *rest)


def case_extracted() -> dict:
    """What is left of another model without this one: as without the dequantized one."""
    other = model_of(seed=5)
    mine, right = (_extracted(other, make()) for make in (load, ordinary))
    return {"same": mine.keys() == right.keys() and all(torch.equal(mine[k], right[k]) for k in right)}


def case_file_written_again() -> dict:
    """A file under the same name: other than before, as one that is gone is."""
    node = load_pack()["FPSAttentionLoadMsfp"]
    load()
    path = FOLDER / "again.safetensors"
    prints = [node.fingerprint_inputs(model_name=path.name, activations=AS_TRAINED)]
    for name in ("t2v", "half"):
        path.write_bytes((FOLDER / f"{name}.safetensors").read_bytes())
        prints.append(node.fingerprint_inputs(model_name=path.name, activations=AS_TRAINED))
    path.unlink()
    return {"prints": len(set(prints)), "first": prints[0]}


def case_with_fpsattention() -> dict:
    """The pack's other nodes on it: what runs is what runs on the dequantized model, and the report names the mode."""
    text, found = "0.90 dense\n0.00 bf16 - 60% 1 1", {}
    for mode in (AS_TRAINED, FULL_PRECISION):
        model, right = shifted(load(activations=mode)), shifted(ordinary(activations=mode))
        patched, expected = apply(with_lora(model), text), sample(apply(with_lora(right), text), steps=3)
        out = sample(patched, steps=3)
        report = load_pack()["FPSAttentionReport"].execute({"samples": torch.zeros(1)}, patched).result[1]
        unpatched = load_pack()["FPSAttentionReport"].execute({"samples": torch.zeros(1)}, model).result[1]
        check = load_pack()["FPSAttentionCheck"].execute(model=patched).result[0]
        found[mode] = {
            "relative": relative(out, expected), "calls": sum(s.sparse for s in runs(patched)[-1].steps.values()),
            "report": report.splitlines()[0], "unpatched": unpatched.splitlines()[0],
            "check": [line for line in check.splitlines() if "MSFP" in line],
        }  # fmt: skip
    return found


def case_trained_schedule() -> dict:
    """A file with a schedule comes out patched by it, as an ordinary file does from its own loader."""
    model, schedule, text = loaded("sparse.safetensors")
    save_file(dequantized("sparse.safetensors"), FOLDER / "sparse-plain.safetensors", metadata=_header())
    loader = load_pack()["FPSAttentionLoadWan"]
    right = loader.execute(model_name="sparse-plain.safetensors", weight_dtype="default").result[0]
    mine = shifted(loaded("sparse.safetensors", FULL_PRECISION)[0])
    out, expected = sample(mine, steps=2), sample(shifted(right), steps=2)
    return {
        "schedule": schedule.format(), "text": text, "relative": relative(out, expected),
        "patched": model.get_attachment("fpsattention") is not None,
        "sparse": [s.sparse for s in runs(mine)[-1].steps.values()],
        "again": [s.sparse for s in runs(right)[-1].steps.values()],
        "header": pack_module("nodes.settings").file_header(model) is not None,
        "weights alone": _text_of_weights_alone("sparse.safetensors"),
    }  # fmt: skip


def _text_of_weights_alone(name: str) -> str:
    """What would be said of the file if it rounded no inputs."""
    facts, file = pack_module("nodes.msfp_facts"), packed_file(name)
    file = replace(file, layers={layer: replace(kept, input=None) for layer, kept in file.layers.items()})
    return facts.describe_msfp(facts.facts_of(name, file, AS_TRAINED), file)


def _header() -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(FOLDER / "sparse.safetensors", "pt") as file:
        return {k: v for k, v in file.metadata().items() if k.startswith("fpsattention.")}


def case_stock_loader() -> str:
    """What Load Diffusion Model says of an MSFP file."""
    import nodes

    return _sentence(lambda: nodes.UNETLoader().load_unet("t2v.safetensors", "default"))


def case_bad_files() -> dict:
    """What the three loaders say of the files of bad/, before and while loading."""
    ours, wan = load_pack()["FPSAttentionLoadMsfp"], load_pack()["FPSAttentionLoadWan"]
    load()
    found = {}
    for path in sorted(FOLDER.glob("bad-*.safetensors")):
        found[path.stem] = {
            "queued": ours.validate_inputs(model_name=path.name),
            "loaded": _sentence(partial(ours.execute, model_name=path.name, activations=AS_TRAINED)),
        }
    found["ours"] = {
        "wan": wan.validate_inputs(model_name="t2v.safetensors"),
        "good": ours.validate_inputs("t2v.safetensors"),
    }
    found["mode"] = _sentence(lambda: ours.execute(model_name="t2v.safetensors", activations="both"))
    found["missing"] = ours.validate_inputs(model_name="nothing.safetensors")
    return found


run_cases(globals())
