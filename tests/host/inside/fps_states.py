"""Small random weights for the host's Wan classes, as files hold them."""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch


def state_of(cls: type, **config: Any) -> dict[str, torch.Tensor]:
    """Return small random weights for a tiny model of the host's ``cls``."""
    torch.manual_seed(0)
    settings = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 3} | config
    module = cls(**settings, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    state = {}
    for name, tensor in module.state_dict().items():
        if tensor.ndim > 1:
            state[name] = torch.randn(tensor.shape) / max(tensor[0].numel(), 1) ** 0.5
        else:
            scale = torch.ones if "norm" in name and name.endswith("weight") else torch.zeros
            state[name] = scale(tensor.shape)
    return state


def widened(state: dict[str, torch.Tensor], in_dim: int, out_dim: int = 16) -> dict[str, torch.Tensor]:
    """Return ``state`` with other numbers of channels at both ends."""
    generator = torch.Generator().manual_seed(1)
    state["patch_embedding.weight"] = torch.randn(256, in_dim, 1, 2, 2, generator=generator) / (4 * in_dim) ** 0.5
    if out_dim != 16:
        state["head.head.weight"] = torch.randn(4 * out_dim, 256, generator=generator) / 16.0
        state["head.head.bias"] = torch.zeros(4 * out_dim)
    return state
