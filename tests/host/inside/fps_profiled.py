"""What the scripts about the profile share: its modules, a small job, and a profile of it."""

from __future__ import annotations

import importlib

import torch
from fps_common import conditioning, load_pack, model_of, shifted

ROOT = load_pack()["FPSAttentionApply"].__module__.rsplit(".nodes.", 1)[0]
PROFILE = importlib.import_module(f"{ROOT}.nodes.profile")
SAMPLING = importlib.import_module(f"{ROOT}.nodes.profile_sampling")
STUDY = importlib.import_module(f"{ROOT}.kernels.profiling.study")
SCHEDULE = importlib.import_module(f"{ROOT}.kernels.schedule").Schedule

# 3 x 12 x 16 = 576 tokens; and 2 x 8 x 16 where only equality counts.
SIZE, SMALL = (3, 24, 32), (2, 16, 32)
STEPS = 6


def latent(size=SIZE, batch: int = 1, channels: int = 16, **more) -> dict:
    return {"samples": torch.zeros(batch, channels, *size), **more}


def job(
    sampler: str = "euler", cfg: float = 1.0, steps: int = STEPS, seed: int = 7, image: dict | None = None, **extra
):
    return SAMPLING.Job(
        conditioning(1, **extra), conditioning(0, **extra), image or latent(), seed, steps, cfg, sampler, "simple"
    )


def profile(model, what=None, goal=("density", 0.4, 25.0, 3), runs: bool = True):
    return PROFILE.run_profile(model, what or job(), STUDY.Goal(*goal), runs, None)


MODEL = shifted(model_of(layers=2), 2.0)
