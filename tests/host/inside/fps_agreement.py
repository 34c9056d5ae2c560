"""The host's side of the agreement test: samples a checkpoint dense and by its own schedule, and saves the latents."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.sd
from fps_common import load_pack, run_cases, sample, shifted
from safetensors.torch import save_file

FOLDER = Path(os.environ["FPS_FOLDER"])


def case_sample() -> bool:
    load_pack()
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(FOLDER))
    loader = load_pack()["FPSAttentionLoadWan"]
    sparse = loader.execute(model_name="model.safetensors", weight_dtype="default").result[0]
    dense = comfy.sd.load_diffusion_model(str(FOLDER / "model.safetensors"))
    latents = {name: sample(shifted(model, 5.0), steps=4) for name, model in (("dense", dense), ("sparse", sparse))}
    save_file({name: latent.contiguous() for name, latent in latents.items()}, FOLDER / "host.safetensors")
    return True


run_cases(globals())
