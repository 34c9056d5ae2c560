"""Writes a tiny random checkpoint of every Wan class of the host, through the host's own classes where they differ."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model as wan
import comfy.ldm.wan.model_animate as animate
import comfy.ops
import torch
from fps_common import run_cases
from fps_tiny import tiny_wan
from safetensors.torch import save_file


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


def flf() -> dict[str, torch.Tensor]:
    """Return an I2V model that embeds the places of two pictures."""
    return tiny_wan("i2v") | {"img_emb.emb_pos": torch.randn(1, 514, 1280, generator=torch.Generator().manual_seed(2))}


FILES = {
    "t2v": lambda: tiny_wan(),
    "t2v_low": lambda: tiny_wan(seed=1),
    "i2v": lambda: tiny_wan("i2v"),
    "flf2v": flf,
    "fun_control": lambda: widened(tiny_wan("i2v"), 48),
    "fun22_control": lambda: widened(tiny_wan("fun_ref"), 52),
    "i2v22_high": lambda: widened(tiny_wan(), 36),
    "i2v22_low": lambda: widened(tiny_wan(seed=1), 36),
    "5b": lambda: widened(tiny_wan(), 48, 48),
    "newer": lambda: tiny_wan("fun_ref"),
    "vace": lambda: state_of(wan.VaceWanModel, in_dim=16, out_dim=16, vace_layers=1, vace_in_dim=96),
    "camera": lambda: state_of(wan.CameraWanModel, in_dim=32, out_dim=16),
    "camera22": lambda: state_of(wan.CameraWanModel, model_type="camera_2.2", in_dim=36, out_dim=16),
    "scail": lambda: state_of(wan.SCAILWanModel, in_dim=20),
    "humo": lambda: state_of(wan.HumoWanModel, in_dim=16, out_dim=16),
    "humo17b": lambda: state_of(wan.HumoWanModel, in_dim=36, out_dim=16),
    "s2v": lambda: state_of(wan.WanModel_S2V, in_dim=16, out_dim=16),
    "animate": lambda: state_of(animate.AnimateWanModel, in_dim=36, out_dim=16, num_layers=5),
}


def case_write() -> list[str]:
    """The names of the files, which lie in FPS_FOLDER."""
    folder = Path(os.environ["FPS_FOLDER"])
    wanted = os.environ.get("FPS_MODELS", "").split() or list(FILES)
    for name in wanted:
        save_file({k: v.contiguous() for k, v in FILES[name]().items()}, folder / f"{name}.safetensors")
    return wanted


run_cases(globals())
