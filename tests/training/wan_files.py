"""Tiny Wan files and folders in every form that people have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from fpsattention.training.names import PREFIX, WanShape, to_diffusers
from safetensors.torch import save_file

SMALL = {kind: WanShape.of_kind(kind, 128, 64, 2, text_dim=16) for kind in ("t2v", "i2v", "flf")}
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def random_state(shape: WanShape, seed: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return random weights under original names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in shape.tensors().items()}


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], count: int = 3, index: bool = True) -> Path:
    """Write the tensors to so many shards, as they are published, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    places, names = {}, sorted(tensors)
    for number in range(count):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    if index:
        size = sum(tensor.nbytes for tensor in tensors.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return folder


def write_form(form: str, folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write original-named weights in a form and return the path that a user would give."""
    file = folder / "a file – mit Ümläuten.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if form == "original":
        save_file(state, file)
    elif form == "comfyui":
        save_file({PREFIX + name: tensor for name, tensor in state.items()}, file)
    elif form == "all in one":
        beside = {"vae.decoder.conv1.weight": torch.zeros(2), "text_encoders.umt5xxl.shared.weight": torch.zeros(2)}
        save_file({PREFIX + name: tensor for name, tensor in state.items()} | beside, file)
    elif form == "diffusers":
        save_file(to_diffusers(state), file)
    elif form == "original shards":
        return write_shards(folder / "Wan2.1 T2V 模型", state)
    elif form == "shards without index":
        return write_shards(folder / "shards", state, index=False)
    elif form == "index":
        return write_shards(folder / "shards", state) / INDEX
    elif form == "diffusers pipeline":
        pipeline = folder / "pipeline"
        write_shards(pipeline / "transformer", to_diffusers(state))
        config = {"_class_name": "WanTransformer3DModel", "num_layers": 2, "ffn_dim": 64, "num_attention_heads": 1}
        (pipeline / "transformer" / "config.json").write_text(json.dumps(config))
        (pipeline / "model_index.json").write_text("{}")
        return pipeline
    return file


FORMS = (
    "original",
    "comfyui",
    "all in one",
    "diffusers",
    "original shards",
    "shards without index",
    "index",
    "diffusers pipeline",
)
