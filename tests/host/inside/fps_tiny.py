"""Tiny Wan checkpoints with random weights, in the original key names: torch and safetensors only."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

DIM, FFN, LAYERS = 256, 512, 3


def tiny_wan(kind: str = "t2v", *, layers: int = LAYERS, dim: int = DIM, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the tensors of a random Wan2.1: t2v, i2v (36 channels, image embedding) or fun_ref (ref_conv)."""
    generator = torch.Generator().manual_seed(seed)
    in_dim, out_dim = {"i2v": 36}.get(kind, 16), 16
    tensors: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[name + ".weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        tensors[name + ".bias"] = torch.randn(rows, generator=generator) * 0.02

    def norm(name: str, size: int, bias: bool = False) -> None:
        tensors[name + ".weight"] = 1.0 + 0.1 * torch.randn(size, generator=generator)
        if bias:
            tensors[name + ".bias"] = 0.02 * torch.randn(size, generator=generator)

    linear("text_embedding.0", dim, 4096)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, 256)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    tensors["patch_embedding.weight"] = torch.randn(dim, in_dim, 1, 2, 2, generator=generator) / (4 * in_dim) ** 0.5
    tensors["patch_embedding.bias"] = torch.zeros(dim)
    for i in range(layers):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", dim, dim)
            norm(f"{block}.{attention}.norm_q", dim)
            norm(f"{block}.{attention}.norm_k", dim)
        norm(f"{block}.norm3", dim, bias=True)
        linear(f"{block}.ffn.0", FFN, dim)
        linear(f"{block}.ffn.2", dim, FFN)
        tensors[f"{block}.modulation"] = 0.5 * torch.randn(1, 6, dim, generator=generator)
        if kind == "i2v":
            linear(f"{block}.cross_attn.k_img", dim, dim)
            linear(f"{block}.cross_attn.v_img", dim, dim)
            norm(f"{block}.cross_attn.norm_k_img", dim)
    linear("head.head", 4 * out_dim, dim)
    tensors["head.modulation"] = 0.5 * torch.randn(1, 2, dim, generator=generator)
    if kind == "i2v":
        norm("img_emb.proj.0", 1280, bias=True)
        linear("img_emb.proj.1", 1280, 1280)
        linear("img_emb.proj.3", dim, 1280)
        norm("img_emb.proj.4", dim, bias=True)
    if kind == "fun_ref":
        tensors["ref_conv.weight"] = torch.randn(dim, 16, 2, 2, generator=generator) / 8.0
        tensors["ref_conv.bias"] = torch.zeros(dim)
    return tensors


def write_tiny_wan(path: Path, kind: str = "t2v", metadata: dict[str, str] | None = None, **options: int) -> Path:
    """Write a tiny Wan to ``path`` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tiny_wan(kind, **options), path, metadata=metadata)
    return path
