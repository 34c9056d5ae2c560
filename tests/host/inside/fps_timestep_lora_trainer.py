"""The host's side: samples the trainer's bases with the trainer's hubs, and saves latents and what ran."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import comfy.sd
from fps_common import load_pack, run_cases, sample, shifted
from fps_talora import recorded, traces
from safetensors.torch import save_file

FOLDER = Path(os.environ["FPS_FOLDER"])
WAYS = ("as trained", "full precision")


def _bases() -> dict[str, tuple[Any, str]]:
    """A MODEL by name, and the hub that is for it."""
    load = load_pack()["FPSAttentionLoadMsfp"].execute
    packed = {way: load(model_name="msfp.safetensors", activations=way).result[0] for way in WAYS}
    plain = comfy.sd.load_diffusion_model(str(FOLDER / "plain.safetensors"))
    return {"plain": (plain, "plain")} | {way: (model, "msfp") for way, model in packed.items()}


def case_sample() -> dict:
    load_pack()
    import folder_paths

    for kind in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, str(FOLDER))
    node, latents, said = load_pack()["FPSAttentionTimestepLora"], {}, {}
    for name, (base, hub) in _bases().items():
        model, text = node.execute(model=base, lora_name=f"{hub}-hub.safetensors", strength=1.0).result
        for steps in (4, 20):
            latents[f"{name} {steps}"] = sample(shifted(model, 5.0), steps=steps).contiguous()
        latents[f"{name} without"] = sample(shifted(base, 5.0), steps=4).contiguous()
        said[name] = {
            "text": text,
            "loras": [[run[sigma][0] for sigma in sorted(run, reverse=True)] for run in recorded(model)],
            "notes": [run.notes for run in model.get_attachment("fpsattention_timestep_lora").record.runs],
            "traces": traces(base),
        }
    save_file(latents, FOLDER / "host.safetensors")
    return said


run_cases(globals())
