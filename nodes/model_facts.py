"""What a connected MODEL says about itself: layers, heads, dtype, the side of a token, its tile and its shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.checkpoint import Header, HeaderError
from ..kernels.head_table import HeadTable
from ..kernels.outlook import PIXELS_PER_TOKEN
from .layout import is_wan
from .model_input import diffusion_model_of
from .patch import PatchError, compute_dtype
from .settings import KEY, Patched, file_header

__all__ = ["ModelFacts", "compute_dtype", "model_facts", "model_shift"]


@dataclass(frozen=True)
class ModelFacts:
    """A Wan model's shape; ``pixels`` is the side of a token, ``shift`` None where it cannot be told.

    ``backend`` is the one that a patch of ours on the model names, ``table`` the head table of that patch, else the
    file's.
    """

    kind: str
    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    pixels: int
    shift: float | None
    header: Header | None
    problem: str | None = None
    backend: str = "auto"
    table: HeadTable | None = None

    @property
    def tiles(self) -> dict[str, Any]:
        """The tile arguments of ``plans_for``: the file's, else the head table's, or none."""
        trained = self.header or self.table
        return {} if trained is None else {"slots": trained.slots, "tile": trained.tile}


def model_facts(model: Any) -> ModelFacts:
    """Return the facts about ``model``; raises PatchError for one that is not Wan.

    A header that cannot be read is left out, and ``problem`` says so.
    """
    diffusion_model = diffusion_model_of(model)
    if not is_wan(diffusion_model):
        raise PatchError(
            f"this node knows Wan models, this one is {type(model.model).__name__}; connect a Wan2.1 or Wan2.2 "
            "diffusion model, or none."
        )
    header, problem = None, None
    patched = model.get_attachment(KEY)
    try:
        header = file_header(model)
    except HeaderError as error:
        problem = str(error)
    return ModelFacts(
        kind=type(diffusion_model).__name__,
        layers=len(diffusion_model.blocks),
        heads=diffusion_model.num_heads,
        head_dim=diffusion_model.dim // diffusion_model.num_heads,
        dtype=compute_dtype(model),
        device=torch.device(model.load_device),
        pixels=_pixels(model, diffusion_model),
        shift=model_shift(model),
        header=header,
        problem=problem,
        backend=patched.settings.backend if isinstance(patched, Patched) else "auto",
        table=_table(patched, header),
    )


def _table(patched: Any, header: Header | None) -> HeadTable | None:
    if isinstance(patched, Patched) and patched.settings.table is not None:
        return patched.settings.table
    return None if header is None else header.heads


def model_shift(model: Any) -> float | None:
    """Return the shift of the model's noise schedule as it stands now, other nodes' patches included."""
    try:
        shift = float(model.get_model_object("model_sampling").shift)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return shift if 0 < shift < 1e4 else None


def _pixels(model: Any, diffusion_model: Any) -> int:
    """The side of a token in pixels: 16, or 32 for Wan2.2 5B with its coarser latents."""
    ratio = getattr(getattr(model.model, "latent_format", None), "spacial_downscale_ratio", None)
    patch = diffusion_model.patch_size[-1]
    return int(ratio * patch) if isinstance(ratio, int) and ratio > 0 else PIXELS_PER_TOKEN
