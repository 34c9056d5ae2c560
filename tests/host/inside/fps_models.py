"""Writes a tiny random checkpoint of every Wan class of the host, through the host's own classes where they differ."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.ldm.wan.model as wan
import comfy.ldm.wan.model_animate as animate
import torch
from fps_common import run_cases
from fps_states import state_of, widened
from fps_tiny import tiny_wan
from safetensors.torch import save_file


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
