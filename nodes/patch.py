"""The model patch: a wrapper around the diffusion model and a marker around each of its blocks.

The wrapper runs once per model call. It reads sigma, finds the phase, prepares plans and, in a sparse phase only,
installs the attention override on top of whatever other nodes installed. In a dense phase the host's attention runs
untouched, so the result is its own, bit for bit. The markers tell self-attention from cross-attention and time blocks.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..kernels.attention import resolve_backend
from .around import DIFFUSION_MODEL, Around, Inputs, keep_compilers_out
from .dense_blocks import check_blocks
from .layout import is_wan
from .model_call import conclude, prepare
from .record import Recorder
from .sentence import one_line
from .settings import FROM_FILE, KEY, Patched, Settings

logger = logging.getLogger(__name__)

# The host's own names (comfy.patcher_extension); a host test holds them equal.
ON_PRE_RUN = "on_pre_run"
ON_CLEANUP = "on_cleanup"

# On a block patch of ours: the patch of another node that stood there before, or None.
INNER = "fpsattention_inner"


class PatchError(ValueError):
    """A model that cannot be patched; the message is one sentence for the user."""


def apply_patch(model: Any, settings: Settings) -> Any:
    """Return a clone of ``model`` that runs ``settings``.

    Raises PatchError for a model that is not Wan or that the head table is not for, DenseBlocksError for blocks that it
    does not have, and BackendError when a named backend cannot run a phase of the schedule, always before anything is
    sampled.
    """
    diffusion_model = model.get_model_object("diffusion_model")
    if not is_wan(diffusion_model):
        raise PatchError(
            f"FPSAttention works on Wan models, this one is {type(model.model).__name__}; "
            "connect a Wan2.1 or Wan2.2 diffusion model."
        )
    check_blocks(settings.dense_blocks, len(diffusion_model.blocks))
    if settings.table is not None:
        problem = settings.table.misfit(len(diffusion_model.blocks), diffusion_model.num_heads)
        if problem is not None:
            raise PatchError(one_line(problem))
    _check_backends(model, diffusion_model, settings)

    settings = _beside_an_earlier_patch(model, settings)
    patched = Patched(settings)
    m = model.clone()
    m.set_attachments(KEY, patched)
    around = _install(m, patched)
    for index in range(len(diffusion_model.blocks)):
        m.set_model_patch_replace(_block_patch(around, index, _present_patch(m, index)), "dit", "double_block", index)
    for note in settings.notes:
        logger.warning("FPSAttention: %s", note)
    return m


def _check_backends(model: Any, diffusion_model: Any, settings: Settings) -> None:
    head_dim = diffusion_model.dim // diffusion_model.num_heads
    dtype = compute_dtype(model)
    for attention in sorted({phase.attention for phase in settings.schedule.phases} - {"dense"}):
        resolve_backend(settings.backend, torch.device(model.load_device), dtype, head_dim, attention)


def compute_dtype(model: Any) -> torch.dtype:
    """Return the dtype that q, k and v will have: FP8 weights still compute in a wider one."""
    inner = model.model
    dtype = getattr(inner, "manual_cast_dtype", None) or inner.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.bfloat16


def _beside_an_earlier_patch(model: Any, settings: Settings) -> Settings:
    """Return ``settings`` with a note if ``model`` was patched before, by a node with other choices."""
    earlier = model.get_attachment(KEY)
    if not isinstance(earlier, Patched):
        return settings
    before = earlier.settings
    if _chosen(before) == _chosen(settings) or (before.source == FROM_FILE and not before.dense_blocks):
        return settings
    note = (
        f"this model was already patched by an FPSAttention node (schedule from {before.source}, {before.choices}); "
        "this later node replaces that patch."
    )
    return replace(settings, notes=(*settings.notes, note))


def _chosen(settings: Settings) -> tuple:
    return settings.schedule, settings.backend, settings.dense_blocks, settings.table


def _install(m: Any, patched: Patched) -> Around:
    """Put wrapper and callbacks on ``m``, in place of an earlier patch of ours; return what stands around its model."""
    recorder, settings = patched.recorder, patched.settings
    around = Around(KEY, partial(_begin, recorder, settings), partial(conclude, recorder))
    # The error that was already being handled when the run began. Its id only: the error holds the frames that it
    # passed, with all of their tensors.
    handled: list[int] = []

    def before(*_: Any) -> None:
        run = recorder.begin()
        for note in settings.notes:
            if note not in run.notes:
                run.notes.append(note)
        handled[:] = [id(sys.exc_info()[1])]
        keep_compilers_out()

    def after(*_: Any) -> None:
        error = sys.exc_info()[1]
        recorder.end(None if id(error) in handled else error)
        handled.clear()

    m.remove_wrappers_with_key(DIFFUSION_MODEL, KEY)
    m.add_wrapper_with_key(DIFFUSION_MODEL, KEY, around.wrapper())
    for call_type, callback in ((ON_PRE_RUN, before), (ON_CLEANUP, after)):
        m.remove_callbacks_with_key(call_type, KEY)
        m.add_callback_with_key(call_type, KEY, callback)
    return around


def _begin(recorder: Recorder, settings: Settings, inputs: Inputs) -> Any:
    return prepare(recorder, settings, *inputs)


def _present_patch(m: Any, index: int) -> Callable | None:
    """Return the block patch that stands at ``index``, without an earlier one of ours."""
    options = m.model_options.get("transformer_options", {})
    return beneath(options.get("patches_replace", {}).get("dit", {}).get(("double_block", index)))


def beneath(present: Callable | None) -> Callable | None:
    """Return what stood at a block before our patches were put there; ``present`` itself if it is none of ours."""
    while hasattr(present, INNER):
        present = getattr(present, INNER)
    return present


def _block_patch(around: Around, index: int, inner: Callable | None) -> Callable:
    patch = around.block_patch(index, inner)
    setattr(patch, INNER, inner)
    return patch
