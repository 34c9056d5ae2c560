"""The host's side of the trainer's files: what it detects in them, what it computes with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from fps_common import run_cases
from safetensors.torch import load_file, save_file

FOLDER = Path(os.environ["FPS_FOLDER"])


def case_detect() -> dict:
    """Classes and configurations of the key lists in lists.json, on the meta device."""
    found = {}
    for name, shapes in json.loads((FOLDER / "lists.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta", dtype=torch.bfloat16) for key, shape in shapes.items()}
        config = comfy.model_detection.model_config_from_unet(state, "")
        unused = comfy.model_detection.unet_prefix_from_state_dict(state)
        with torch.device("meta"):
            model = config.get_model(state, "")
        have = {key: list(tensor.shape) for key, tensor in model.diffusion_model.state_dict().items()}
        found[name] = {
            "class": type(config).__name__,
            "config": {key: value for key, value in config.unet_config.items() if isinstance(value, int | str)},
            "missing": sorted(have.keys() - shapes.keys()),
            "unexpected": sorted(shapes.keys() - have.keys()),
            "differing": [key for key in have if key in shapes and have[key] != shapes[key]],
            "prefix": unused,
        }
    return found


def _loaded(path: Path) -> object:
    model = comfy.sd.load_diffusion_model(str(path))
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return model


def _velocity(model: object, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.model.diffusion_model(
        inputs["x"], inputs["t"], inputs["context"], clip_fea=inputs.get("image"), transformer_options={}
    )


def case_velocity() -> dict:
    """What every file of the folder gives on its inputs, saved as <stem>.out."""
    seen = {}
    for path in sorted(FOLDER.glob("model-*.safetensors")):
        model = _loaded(path)
        inputs = load_file(path.with_suffix(".inputs"))
        save_file({"velocity": _velocity(model, inputs).float().contiguous()}, path.with_suffix(".out"))
        linear = model.model.diffusion_model.blocks[0].ffn[0]
        seen[path.stem] = {
            "class": type(model.model.model_config).__name__,
            "weight": type(linear.weight).__name__,
            "full_precision": getattr(linear, "_full_precision_mm_config", None),
        }
    return seen


def case_scaled_weights() -> float:
    """The largest difference between the host's own view of an FP8 file's weights and the trainer's."""
    model, ours = _loaded(FOLDER / "model-t2v-fp8.safetensors"), load_file(FOLDER / "dequantized.safetensors")
    worst = 0.0
    for name, weight in ours.items():
        host = comfy.utils.get_attr(model.model.diffusion_model, name)
        host = host.dequantize() if hasattr(host, "dequantize") else host
        worst = max(worst, float((host.float() - weight.float()).abs().max()))
    return worst


run_cases(globals())
