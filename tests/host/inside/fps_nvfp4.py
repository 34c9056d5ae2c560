"""The stock loader's view of an NVFP4 file that the trainer wrote: what it loads, and what that computes."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from fps_common import run_cases
from safetensors.torch import load_file, save_file

FOLDER = Path(os.environ["FPS_FOLDER"])


def case_velocity() -> dict:
    """Load the file as *Load Diffusion Model* does, and save its velocity as nvfp4.out."""
    model = comfy.sd.load_diffusion_model(str(FOLDER / "nvfp4.safetensors"))
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    inputs = load_file(FOLDER / "inputs.safetensors")
    diffusion = model.model.diffusion_model
    dtype = diffusion.blocks[0].ffn[0].bias.dtype
    x, context = (inputs[name].to(dtype) for name in ("x", "context"))
    with torch.no_grad():
        velocity = diffusion(x, inputs["t"], context, transformer_options={})
    save_file({"velocity": velocity.float().contiguous()}, FOLDER / "nvfp4.out")
    weight = diffusion.blocks[0].ffn[0].weight
    return {"class": type(model.model.model_config).__name__, "layout": weight._layout_cls, "dtype": str(dtype)}


run_cases(globals())
