"""The Wan family: extra tokens in front, behind, as frames, or none; a full window equals dense in all of them."""

from __future__ import annotations

from typing import Any

import comfy.ldm.wan.model as wan
import comfy.ldm.wan.model_animate as animate
import comfy.sd
import torch
from fps_common import apply, model_of, relative, run_cases, run_summary, runs, sample
from fps_states import state_of, widened
from fps_tiny import tiny_wan

FULL = "0.00 bf16 - 99 99 99"
SPARSE = "0.00 fp8 x1 1 1 1"
# 3 x 12 x 16 latents: 3 x 6 x 8 = 144 tokens, 48 per frame.
SIZE = (3, 12, 16)


def _built(cls: type, **config: Any) -> Any:
    """Return a MODEL of the host's ``cls`` with small random weights, through the host's own detection."""
    model = comfy.sd.load_diffusion_model_state_dict(state_of(cls, **config))
    assert type(model.model.diffusion_model) is cls, type(model.model.diffusion_model)
    return model


def _checked(model: Any, size: tuple[int, int, int] = SIZE, **options: Any) -> dict:
    """Return how close a full window is to dense, and what a sparse one did."""
    plain = sample(model, size=size, **options)
    full = apply(model, FULL)
    error = relative(sample(full, size=size, **options), plain)
    sparse = apply(model, SPARSE)
    out = sample(sparse, size=size, **options)
    return {
        "relative": error,
        "changed": relative(out, plain),
        "finite": bool(out.isfinite().all()),
        "full": run_summary(runs(full)[0]),
        "sparse": run_summary(runs(sparse)[0]),
        "class": type(model.model.diffusion_model).__name__,
    }


def _latent(frames: int = 1, channels: int = 16) -> torch.Tensor:
    return torch.randn(1, channels, frames, 12, 16, generator=torch.Generator().manual_seed(3))


def case_t2v():
    return _checked(model_of())


def case_i2v():
    class ClipVision:
        penultimate_hidden_states = torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(5))

    return _checked(model_of("i2v"), extra={"clip_vision_output": ClipVision(), "concat_latent_image": _latent(3)})


def case_fun_reference():
    return _checked(model_of("fun_ref"), extra={"reference_latents": [_latent()]})


def case_fun_without_reference():
    return _checked(model_of("fun_ref"))


def case_phantom():
    return _checked(model_of(), extra={"time_dim_concat": _latent(2)})


def case_vace():
    model = _built(wan.VaceWanModel, in_dim=16, out_dim=16, vace_layers=1, vace_in_dim=96)
    return _checked(model)


def case_camera():
    model = _built(wan.CameraWanModel, in_dim=32, out_dim=16)
    return _checked(model)


def case_s2v():
    model = _built(wan.WanModel_S2V, in_dim=16, out_dim=16)
    return _checked(model, extra={"reference_latents": [_latent()], "reference_motion": _latent(3)})


def case_humo():
    model = _built(wan.HumoWanModel, in_dim=16, out_dim=16)
    audio = torch.randn(1, 3, 8, 5, 1280, generator=torch.Generator().manual_seed(4))
    return _checked(model, extra={"reference_latents": [_latent()], "audio_embed": audio})


def case_animate():
    model = _built(animate.AnimateWanModel, in_dim=36, out_dim=16, num_layers=5)
    return _checked(model)


def case_scail():
    model = _built(wan.SCAILWanModel, in_dim=20)
    pose = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(6))
    return _checked(model, extra={"reference_latents": [_latent()], "pose_video_latent": pose})


def case_wan22_5b():
    model = comfy.sd.load_diffusion_model_state_dict(widened(tiny_wan(), 48, 48))
    return _checked(model, channels=48)


def case_unknown_class_with_extra_tokens():
    """A class that is not known and adds tokens: dense, with the reason, and still the right result."""

    class NewWanModel(wan.WanModel):
        pass

    model = model_of("fun_ref")
    model.model.diffusion_model.__class__ = NewWanModel
    extra = {"reference_latents": [_latent()]}
    plain = sample(model, size=SIZE, extra=extra)
    patched = apply(model, SPARSE)
    equal = torch.equal(sample(patched, size=SIZE, extra=extra), plain)
    return {"equal": equal, "run": run_summary(runs(patched)[0])}


run_cases(globals())
