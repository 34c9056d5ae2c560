"""What stands in for Wan's own files where a shipped workflow is really run: tiny models under the files' own names.

Text encoder and image encoder have no small version that the host could load, so their branches become nodes of the
test pack. Sizes and steps are reduced; nothing else of a workflow is changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.msfp.file import PackedLayer, write_msfp
from fpsattention.kernels.msfp.formats import FloatFormat
from fpsattention.kernels.msfp.weights import WeightFormat, quantize_weight
from fpsattention.kernels.timestep_lora import RouteTable, write_timestep_lora
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent.parent
SMALL_VAE = ROOT / "training" / "assets" / "wan2.1-tiny-vae.safetensors"
FRAMES, HEIGHT, WIDTH, STEPS = 9, 104, 136, 3

REDUCED = {
    "EmptyHunyuanLatentVideo": {"width": WIDTH, "height": HEIGHT, "length": FRAMES},
    "WanImageToVideo": {"width": WIDTH - 8, "height": HEIGHT - 8, "length": FRAMES},
    "WanVaceToVideo": {"width": WIDTH - 8, "height": HEIGHT - 8, "length": FRAMES},
    "KSampler": {"steps": STEPS},
    "FPSAttentionSearchHeads": {"steps": STEPS, "dense_steps": 1, "budget": 60.0},
    "FPSAttentionProfile": {"steps": STEPS, "effort": "rows", "density": 0.6, "phases": 2},
}
LOADERS = {
    "UNETLoader": ("diffusion_models", "unet_name"),
    "FPSAttentionLoadWan": ("diffusion_models", "model_name"),
    "VAELoader": ("vae", "vae_name"),
    "FPSAttentionLoadMsfp": ("diffusion_models", "model_name"),
    "LoraLoaderModelOnly": ("loras", "lora_name"),
    "FPSAttentionTimestepLora": ("loras", "lora_name"),
    "LoadImage": ("", "image"),
}
ENCODERS = {"CLIPLoader": ("text_encoders", "clip_name"), "CLIPVisionLoader": ("clip_vision", "clip_name")}
KINDS = {"i2v": "i2v", "vace": "vace"}


def reduced(graph: dict[str, Any]) -> dict[str, Any]:
    """Return the API graph with small sizes, and with the test pack's nodes in place of the two encoders."""
    changed = {}
    for key, node in graph.items():
        kind = node["class_type"]
        if kind in ENCODERS:
            continue
        node = node | {"inputs": node["inputs"] | REDUCED.get(kind, {})}
        if kind == "CLIPTextEncode":
            seed = int("Positive" in node["_meta"]["title"])
            node = {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": seed, "tokens": 512}}
        elif kind == "CLIPVisionEncode":
            node = {"class_type": "FPSTestVision", "inputs": {"noise_seed": 3}}
        changed[key] = node
    return changed


def offer(base: Path, graph: dict[str, Any], tiny: ModuleType, metadata: dict[str, str]) -> None:
    """Put a tiny file where each loader of the API graph looks; our own loader's file carries ``metadata``."""
    for node in graph.values():
        if node["class_type"] not in LOADERS:
            continue
        folder, widget = LOADERS[node["class_type"]]
        name = node["inputs"][widget]
        path = base / "models" / folder / name if folder else base / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder == "vae":
            shutil.copyfile(SMALL_VAE, path)
        elif node["class_type"] == "FPSAttentionLoadMsfp":
            msfp(path, tiny, metadata)
        elif node["class_type"] == "FPSAttentionTimestepLora":
            hub(path, tiny)
        elif folder == "loras":
            save_file(lora(tiny), path)
        elif not folder:
            picture(path)
        else:
            kind = next((kind for part, kind in KINDS.items() if part in name), "t2v")
            tensors = vace(tiny) if kind == "vace" else tiny.tiny_wan(kind)
            save_file(tensors, path, metadata=metadata if node["class_type"] == "FPSAttentionLoadWan" else None)


def offer_encoders(base: Path, graph: dict[str, Any]) -> None:
    """Put an empty file where the API graph's encoders look, so that the page misses no model."""
    for node in graph.values():
        if node["class_type"] in ENCODERS:
            folder, widget = ENCODERS[node["class_type"]]
            path = base / "models" / folder / node["inputs"][widget]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def vace(tiny: ModuleType, layers: int = 1) -> dict[str, torch.Tensor]:
    """The tensors of a random Wan2.1 VACE: the text-to-video model and control blocks beside it."""
    tensors, control = tiny.tiny_wan(), tiny.tiny_wan(seed=1)
    generator = torch.Generator().manual_seed(2)
    dim = tensors["patch_embedding.weight"].shape[0]
    for name, tensor in control.items():
        parts = name.split(".")
        if parts[0] == "blocks" and int(parts[1]) < layers:
            tensors["vace_" + name] = tensor
    for name in ("vace_blocks.0.before_proj", *(f"vace_blocks.{i}.after_proj" for i in range(layers))):
        tensors[name + ".weight"] = torch.randn(dim, dim, generator=generator) / dim**0.5
        tensors[name + ".bias"] = torch.zeros(dim)
    tensors["vace_patch_embedding.weight"] = torch.randn(dim, 96, 1, 2, 2, generator=generator) / 20.0
    tensors["vace_patch_embedding.bias"] = torch.zeros(dim)
    return tensors


def lora(tiny: ModuleType, rank: int = 4) -> dict[str, torch.Tensor]:
    """A random LoRA for the tiny text-to-video model, in the names that the host reads."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for name, tensor in tiny.tiny_wan().items():
        if name.endswith("self_attn.q.weight"):
            base = "diffusion_model." + name.removesuffix(".weight")
            tensors[base + ".lora_A.weight"] = torch.randn(rank, tensor.shape[1], generator=generator) * 0.1
            tensors[base + ".lora_B.weight"] = torch.randn(tensor.shape[0], rank, generator=generator) * 0.1
    return tensors


def msfp(path: Path, tiny: ModuleType, metadata: dict[str, str]) -> None:
    """Write the tiny text-to-video model with a block's feed-forward layers in 4 bits."""
    tensors, layers, packed = tiny.tiny_wan(), {}, {}
    form = WeightFormat(FloatFormat.parse("e2m1"), "channel")
    for layer in ("blocks.0.ffn.0", "blocks.0.ffn.2"):
        weight = tensors.pop(f"{layer}.weight")
        layers[layer] = PackedLayer(form, weight.shape[1])
        packed[layer] = quantize_weight(weight, form, weight.abs().amax(1, keepdim=True) / form.form.top)
    write_msfp(
        path, layers, {name: weight.shape[0] for name, weight in packed.items()},
        {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()},
        [*tensors.items(), *packed.items()], scale_dtype=torch.float32, fingerprint="0" * 64,
        header=Header.from_metadata(metadata),
    )  # fmt: skip


def hub(path: Path, tiny: ModuleType) -> None:
    """Write a timestep-aware LoRA of two LoRAs for the tiny text-to-video model."""
    generator, matrices = torch.Generator().manual_seed(4), {}
    for name, tensor in tiny.tiny_wan().items():
        if name.endswith("ffn.0.weight"):
            rows, columns = tensor.shape
            pair = (torch.randn(shape, generator=generator) * 0.1 for shape in ((2, 4, columns), (2, rows, 4)))
            matrices[name.removesuffix(".weight")] = tuple(pair)
    write_timestep_lora(path, matrices, RouteTable(((0.9, 1), (0.0, 0))), 1.0, base="0" * 64)


def picture(path: Path) -> None:
    """Write a small picture of colored squares."""
    from PIL import Image

    squares = Image.new("RGB", (8, 6))
    squares.putdata([((37 * i) % 256, (91 * i) % 256, (53 * i + 60) % 256) for i in range(48)])
    squares.resize((256, 192), Image.Resampling.NEAREST).save(path)
