"""Models for the tests of MSFP: a file through our loader, and the same as an ordinary model whose inputs are rounded
by hooks. LoRAs through the host's own node."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from fps_common import load_pack, pack_module
from safetensors.torch import load_file, save_file

import nodes

FOLDER = Path(os.environ["FPS_FOLDER"])
AS_TRAINED, FULL_PRECISION = "as trained", "full precision"
LORA_LAYERS = ("self_attn.q", "self_attn.v", "cross_attn.k", "ffn.0", "ffn.2")


def load(name: str = "t2v.safetensors", activations: str = AS_TRAINED) -> Any:
    """Return the node's MODEL."""
    return loaded(name, activations)[0]


def loaded(name: str, activations: str = AS_TRAINED) -> tuple:
    """Return all that the node gives."""
    if str(FOLDER) not in folder_paths.get_folder_paths("diffusion_models"):
        folder_paths.add_model_folder_path("diffusion_models", str(FOLDER))
    return load_pack()["FPSAttentionLoadMsfp"].execute(model_name=name, activations=activations).result


def packed_file(name: str = "t2v.safetensors") -> Any:
    """Return what the file's header says."""
    load_pack()
    return pack_module("kernels.msfp.file").read_msfp(FOLDER / name)


def dequantized(name: str = "t2v.safetensors") -> dict[str, torch.Tensor]:
    """Return an ordinary Wan's tensors with the values of the file's codes."""
    file = packed_file(name)
    state = dict(file.tensors())
    for layer, packed in file.packed():
        state[f"{layer}.weight"] = pack_module("kernels.msfp.weights").dequantize_reference(packed)
    return state


def ordinary(name: str = "t2v.safetensors", activations: str = AS_TRAINED) -> Any:
    """Return the host's own model of the same values, its inputs rounded by hooks as the file says."""
    model = comfy.sd.load_diffusion_model_state_dict(dequantized(name))
    if activations == AS_TRAINED:
        for layer, kept in packed_file(name).layers.items():
            if kept.input is not None:
                module = comfy.utils.get_attr(model.model.diffusion_model, layer)
                module.register_forward_pre_hook(lambda _, args, kept=kept: (kept.input.reference(args[0]),))
    return model


def velocity(model: Any, name: str = "t2v") -> torch.Tensor:
    """Return the model's output for the inputs of that kind, fully loaded by the host's management."""
    comfy.model_management.load_models_gpu([model])
    return forward(model, name)


def forward(model: Any, name: str = "t2v") -> torch.Tensor:
    """Return the output as the model is loaded now."""
    x = load_file(FOLDER / f"{name}.inputs")
    return model.model.diffusion_model(
        x["x"], x["t"], x["context"], clip_fea=x.get("image"), transformer_options={}
    ).float()


def lora(seed: int = 3, scale: float = 0.3, layers: int = 3) -> dict[str, torch.Tensor]:
    """Return a LoRA on packed and on plain layers, one with a difference of its bias."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(layers):
        for part in LORA_LAYERS:
            columns, rows = {"ffn.0": (256, 512), "ffn.2": (512, 256)}.get(part, (256, 256))
            name = f"diffusion_model.blocks.{i}.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.05
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * scale
        tensors[f"diffusion_model.blocks.{i}.ffn.0.diff_b"] = torch.randn(512, generator=generator) * 0.05
    return tensors


def with_lora(model: Any, strength: float = 1.0, seed: int = 3) -> Any:
    """Return ``model`` behind the host's own LoRA node."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(lora(seed), Path(folder) / f"lora-{seed}.safetensors")
        folder_paths.add_model_folder_path("loras", folder)
        found = nodes.LoraLoaderModelOnly().load_lora_model_only(model, f"lora-{seed}.safetensors", strength)[0]
    folder_paths.folder_names_and_paths["loras"][0].remove(folder)
    folder_paths.filename_list_cache.clear()
    return found


def packed_layers(model: Any) -> dict[str, Any]:
    """Return the layers of ``model`` whose weights are packed, by name."""
    kind = pack_module("nodes.msfp_linear").MsfpLinear
    return {name: module for name, module in model.model.named_modules() if isinstance(module, kind)}


def state_of_layers(model: Any) -> list:
    """Return what must be the same before and after a run: codes, scales, and what is attached to layers."""
    return [
        (name, int(m.weight._qdata.long().sum()), float(m.weight._params.scale.double().sum()), m.on_the_fly is None,
         len(m.weight_function))
        for name, m in packed_layers(model).items()
    ]  # fmt: skip
