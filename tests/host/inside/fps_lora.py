"""The host's side of the LoRA test: reads a file as its loader node does, and runs the model with and without it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from fps_common import run_cases
from safetensors.torch import load_file, save_file

FOLDER = Path(os.environ["FPS_FOLDER"])


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _out(model) -> torch.Tensor:
    comfy.model_management.load_models_gpu([model])
    inputs = load_file(FOLDER / "inputs.safetensors")
    image = inputs.get("encoder_hidden_states_image")
    return model.model.diffusion_model(inputs["x"], inputs["t"], context=inputs["text"], clip_fea=image).float()


def case_lora() -> dict:
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    model = comfy.sd.load_diffusion_model(str(FOLDER / "model.safetensors"))
    file = comfy.utils.load_torch_file(str(FOLDER / "lora.safetensors"), safe_load=True)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(file, keys)
    outputs = {"without": _out(model.clone())}
    for name, strength in (("with", 1.0), ("half", 0.5)):
        patched, _ = comfy.sd.load_lora_for_models(model, None, file, strength, 0)
        outputs[name] = _out(patched)
        model = comfy.sd.load_diffusion_model(str(FOLDER / "model.safetensors"))
    save_file({name: out.contiguous() for name, out in outputs.items()}, FOLDER / "host.safetensors")
    return {"patches": sorted(str(key) for key in patches), "warnings": warnings.lines}


run_cases(globals())
