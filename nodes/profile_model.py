"""The model that a profile samples: without our own patch, and with the facts that its cost depends on."""

from __future__ import annotations

from typing import Any

from ..kernels.checkpoint import Header
from ..kernels.profiling.cost import ModelShape
from ..kernels.profiling.errors import ProfileError
from .around import DIFFUSION_MODEL
from .layout import is_wan
from .patch import INNER, ON_CLEANUP, ON_PRE_RUN, beneath
from .settings import KEY, Patched, file_header


def without_patch(model: Any, who: str = "FPSAttention Profile") -> tuple[Any, bool, Header | None]:
    """Return a clone of ``model`` that runs what stood there before FPSAttention nodes, whether there was one, and the
    header of the model's file. Raises ProfileError for a model that is not Wan.

    ``model`` itself is not touched; patches of other nodes stay.
    """
    diffusion_model = model.get_model_object("diffusion_model")
    if not is_wan(diffusion_model):
        raise ProfileError(
            f"{who} works on Wan models, this one is {type(model.model).__name__}; connect a Wan2.1 or "
            "Wan2.2 diffusion model."
        )
    header = file_header(model)
    m = model.clone()
    patched = isinstance(m.get_attachment(KEY), Patched)
    if not patched:
        return m, False, header
    m.remove_attachments(KEY)
    m.remove_wrappers_with_key(DIFFUSION_MODEL, KEY)
    for call_type in (ON_PRE_RUN, ON_CLEANUP):
        m.remove_callbacks_with_key(call_type, KEY)
    for index in range(len(diffusion_model.blocks)):
        _restore_block(m, index)
    return m, True, header


def _restore_block(m: Any, index: int) -> None:
    """Put back at block ``index`` what stood there before ours: another node's patch, or nothing."""
    key = ("double_block", index)
    present = m.model_options.get("transformer_options", {}).get("patches_replace", {}).get("dit", {}).get(key)
    if not hasattr(present, INNER):
        return
    inner = beneath(present)
    # Through the host's function first: it replaces the dicts by copies, so the model that came in keeps its own.
    m.set_model_patch_replace(inner or present, "dit", *key)
    if inner is None:
        del m.model_options["transformer_options"]["patches_replace"]["dit"][key]


def model_shape(model: Any) -> ModelShape:
    """Return the sizes that a Wan's operations depend on."""
    diffusion_model = model.get_model_object("diffusion_model")
    text = getattr(diffusion_model, "text_len", 512)
    return ModelShape(
        int(diffusion_model.dim),
        int(getattr(diffusion_model, "ffn_dim", 4 * diffusion_model.dim)),
        len(diffusion_model.blocks),
        int(text) if isinstance(text, int) else 512,
    )
