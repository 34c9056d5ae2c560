"""What arrives at an input for a MODEL: a diffusion model, or the sentence for what is none."""

from __future__ import annotations

from typing import Any

from .patch import PatchError


def diffusion_model_of(model: Any) -> Any:
    """Return the diffusion model inside ``model``; raises PatchError for what is no MODEL, as a switch may give it."""
    try:
        return model.get_model_object("diffusion_model")
    except AttributeError:
        raise PatchError(
            f"the input 'model' got {type(model).__name__}, which is no diffusion model; connect the MODEL output of a "
            "loader."
        ) from None
