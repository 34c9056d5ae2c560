"""Where the video's tokens stand in the sequence of a Wan model call.

The grid is computed from the call itself, because only some of the host's Wan classes publish it. A class whose extra
tokens have an unknown place is reported as such, never guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..kernels.grid import TokenGrid

# Classes of the host whose sequence is described below; tests/host runs a tiny model of each.
_VIDEO_ONLY = ("VaceWanModel", "CameraWanModel")
_REFERENCE_IMAGE_IN_FRONT = ("WanModel", "AnimateWanModel")
_REFERENCE_BEHIND = ("HumoWanModel",)
_REFERENCE_AND_MOTION_BEHIND = ("WanModel_S2V",)
_POSE_BEHIND = ("SCAILWanModel",)


@dataclass(frozen=True)
class Layout:
    """The token grid of one call, or the sentence why it is not known."""

    grid: TokenGrid
    known: bool = True


def is_wan(diffusion_model: Any) -> bool:
    """True for the host's ``WanModel`` and everything derived from it."""
    return any(cls.__name__ == "WanModel" for cls in type(diffusion_model).__mro__)


def sequence_layout(diffusion_model: Any, x: Any, time_dim_concat: Any, extra: dict) -> Layout:
    """Return the layout of the self-attention sequence for latents ``x`` (b, c, t, h, w) of this call.

    ``extra`` holds the call's further keyword arguments. ``known`` is False for a class that this pack does not
    know: its video grid is right, but where extra tokens would stand is not.
    """
    patch = tuple(diffusion_model.patch_size)
    t, h, w = _patches(x, patch)
    if time_dim_concat is not None:
        t += math.ceil(time_dim_concat.shape[2] / patch[0])
    name = _wan_class_name(diffusion_model)
    reference = extra.get("reference_latent")
    prefix = suffix = 0
    if name in _REFERENCE_IMAGE_IN_FRONT:
        if reference is not None and getattr(diffusion_model, "ref_conv", None) is not None:
            prefix = (reference.shape[-2] // patch[1]) * (reference.shape[-1] // patch[2])
    elif name in _REFERENCE_BEHIND + _REFERENCE_AND_MOTION_BEHIND:
        if reference is not None:
            suffix += _floor_product(reference.shape[-3:], patch)
        motion = extra.get("reference_motion") if name in _REFERENCE_AND_MOTION_BEHIND else None
        if motion is not None:
            suffix += _motion_tokens(motion)
    elif name in _POSE_BEHIND:
        if reference is not None:
            t += math.ceil(reference.shape[2] / patch[0])
        pose = extra.get("pose_latents")
        if pose is not None:
            suffix = math.prod(_patches(pose, patch))
    return Layout(TokenGrid(t, h, w, prefix, suffix), known=name is not None)


def control_blocks(diffusion_model: Any, extra: dict) -> tuple[dict[int, int], int]:
    """Return VACE's control blocks as main block -> number of the control block behind it, and how often each runs.

    Empty for other classes, and where the class does not say which main block they follow.
    """
    mapping = getattr(diffusion_model, "vace_layers_mapping", None)
    context = extra.get("vace_context")
    if not isinstance(mapping, dict) or getattr(context, "ndim", 0) < 2:
        return {}, 1
    blocks = len(getattr(diffusion_model, "vace_blocks", ()))
    return {main: number for main, number in mapping.items() if number < blocks}, int(context.shape[1])


def _wan_class_name(diffusion_model: Any) -> str | None:
    known = _VIDEO_ONLY + _REFERENCE_IMAGE_IN_FRONT + _REFERENCE_BEHIND + _REFERENCE_AND_MOTION_BEHIND + _POSE_BEHIND
    name = type(diffusion_model).__name__
    return name if name in known else None


def _patches(latent: Any, patch: tuple[int, ...]) -> tuple[int, int, int]:
    """Tokens per axis; the host pads the latent to whole patches."""
    return tuple(math.ceil(n / p) for n, p in zip(latent.shape[-3:], patch))


def _floor_product(shape: Any, patch: tuple[int, ...]) -> int:
    """Tokens of a latent that the host does not pad: whole patches only."""
    return math.prod(n // p for n, p in zip(shape, patch))


def _motion_tokens(motion: Any) -> int:
    """Tokens of the packed motion frames: 1 frame at patch 2, 2 frames at patch (2, 4, 4), 16 at patch (4, 8, 8)."""
    h, w = motion.shape[-2:]
    return sum(frames * (h // p) * (w // p) for frames, p in ((1, 2), (1, 4), (4, 8)))
