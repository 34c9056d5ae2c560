"""What a timestep-aware LoRA costs the host itself: 40 blocks of one token, so that arithmetic is next to nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from fps_common import PACK, model_of, run_cases
from fps_talora import HubFile, acting, adapt, in_blocks, linears

BLOCKS = 40
_PATH = Path(PACK) / "tests" / "nodes" / "interleaved.py"
_SPEC = importlib.util.spec_from_file_location("fps_interleaved", _PATH)
interleaved = importlib.util.module_from_spec(_SPEC)
sys.modules["fps_interleaved"] = interleaved
_SPEC.loader.exec_module(interleaved)

MODEL = model_of(layers=BLOCKS, dim=128)
FILE = HubFile("overhead", linears(MODEL, in_blocks), rows=((0.5, 0), (0.0, 1)), hub=2)
ADAPTED = adapt(MODEL, FILE)


def caller(model: Any, *sigmas: float) -> Any:
    """A function that calls the model once as a sampler does, at these sigmas in turn."""
    x, context = torch.randn(1, 16, 1, 2, 2), torch.zeros(1, 4, 4096)
    template = dict(model.model_options["transformer_options"]) | {"wrappers": model.wrappers, "cond_or_uncond": [0]}
    count = iter(range(10**9))

    def call() -> torch.Tensor:
        sigma = torch.full((1,), sigmas[next(count) % len(sigmas)])
        options = dict(template, sigmas=sigma)
        return model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)

    return call


def _figures(added: Any) -> dict:
    return {"median": added.median, "low": added.low, "high": added.high, "base": added.base}


def case_layers() -> dict:
    """What the adapted layers add to a call, all of it."""
    return _figures(interleaved.added(caller(MODEL, 0.7), caller(ADAPTED, 0.7), 40))


def case_switch() -> dict:
    """A LoRA that changes in every call, beside one that stays."""
    return _figures(interleaved.added(caller(ADAPTED, 0.7), caller(ADAPTED, 0.7, 0.2), 100))


def case_around() -> dict:
    """What is done around a call: to choose, to find the layers, to put their forward in and out."""
    model, chosen = MODEL.model, acting(ADAPTED).choose([0.7])
    patch = sys.modules[type(acting(ADAPTED)).__module__]

    def around() -> None:
        with patch.adapted(model.diffusion_model, acting(ADAPTED).branches(chosen), 1):
            pass

    return _figures(interleaved.added(lambda: None, around, 100)) | {"layers": len(FILE.matrices)}


run_cases(globals())
