"""What is checked before a node samples by itself: latent, conditioning, backend, and nodes that it cannot see past.

Each check raises ProfileError with one sentence.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..kernels.attention import choose_backend
from ..kernels.attention.dispatch import BackendError
from ..kernels.grid import TokenGrid
from ..kernels.profiling.errors import ProfileError
from .layout import sequence_layout
from .patch import compute_dtype

# Entries of a conditioning that neither add tokens nor cut anything out of the latent.
SAME_GRID = {
    "pooled_output", "attention_mask", "clip_vision_output", "concat_latent_image", "concat_mask", "concat_mask_index",
    "vace_frames", "vace_mask", "vace_strength", "camera_conditions",
}  # fmt: skip
# Where the host's own EasyCache and LazyCache keep their state.
CACHE = "easycache"


def check_latent(base: Any, latent: Any) -> None:
    """Refuse what is no latent video of this model."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if getattr(samples, "is_nested", False) or not isinstance(samples, torch.Tensor):
        raise ProfileError("latent_image is no single video latent; connect one from an empty latent video node.")
    if samples.ndim not in (4, 5):
        raise ProfileError(
            f"latent_image has {samples.ndim} dimensions, a video latent has 5; connect one from an empty latent video "
            "node."
        )
    wanted = base.get_model_object("latent_format").latent_channels
    if samples.shape[1] != wanted and bool(samples.count_nonzero()):
        raise ProfileError(
            f"latent_image has {samples.shape[1]} channels, this model's latents have {wanted}; connect a latent that "
            "was made for this model."
        )
    if math.prod(samples.shape) == 0:
        raise ProfileError("latent_image is empty; connect one with at least one frame.")


def check_conditioning(**inputs: Any) -> None:
    """Refuse what is no conditioning."""
    for name, given in inputs.items():
        if not isinstance(given, list | tuple):
            raise ProfileError(f"{name} got {type(given).__name__}, which is no conditioning; connect a text encoder.")


def known_grid(base: Any, latent: torch.Tensor, *conditionings: Any) -> TokenGrid | None:
    """Return the token grid of every model call where ``latent`` alone decides it, else None: a conditioning may bring
    frames or tokens, and other nodes may hand over parts of the latent or more than it."""
    options = base.model_options
    if latent.ndim != 5 or "context_handler" in options or "model_function_wrapper" in options:
        return None
    if any(found for wrappers in base.wrappers.values() for found in wrappers.values()):
        return None
    for entry in (entry for conditioning in conditionings for entry in conditioning):
        given = entry[1] if isinstance(entry, list | tuple) and len(entry) > 1 else None
        if not isinstance(given, dict) or not SAME_GRID.issuperset(given):
            return None
    layout = sequence_layout(base.get_model_object("diffusion_model"), latent, None, {})
    return layout.grid if layout.known else None


def check_backend(base: Any, attention: str = "fp8", purpose: str = "profile") -> str | None:
    """Refuse a place where phases of ``attention`` would stay dense; return the sentence that says what
    runs them, where that is not their own kernel."""
    diffusion_model = base.get_model_object("diffusion_model")
    head_dim = diffusion_model.dim // diffusion_model.num_heads
    try:
        backend, note = choose_backend("auto", base.load_device, compute_dtype(base), head_dim, attention)
    except BackendError as error:
        raise ProfileError(f"attention cannot run sparse here, so there is nothing to {purpose}: {error}") from None
    if backend is None:
        raise ProfileError(f"attention would stay dense here, so there is nothing to {purpose}: {note}.")
    return note


def check_caches(base: Any) -> None:
    """Refuse the host's own nodes that skip steps; others are found when they first skip one."""
    cache = base.model_options.get("transformer_options", {}).get(CACHE)
    if cache is not None:
        raise skips(getattr(cache, "name", "EasyCache"))


def skips(who: str, where: str = "") -> ProfileError:
    """Return the error for a node that skips steps: what it hands out comes from steps that ran otherwise."""
    return ProfileError(
        f"{who} on the MODEL skips steps{where} and reuses earlier ones in their place, so it would be measured, not "
        "the attention; connect the MODEL as it is before that node here, and keep the node for sampling."
    )
