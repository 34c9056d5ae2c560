"""The model patch: a wrapper around the diffusion model and a marker around each of its blocks.

The wrapper runs once per model call. It reads sigma, finds the phase, prepares plans and, in a sparse phase only,
installs the attention override on top of whatever other nodes installed. In a dense phase the host's attention runs
untouched, so the result is its own, bit for bit. The markers tell self-attention from cross-attention and time blocks.

Wrapper, markers and override stay out of compiled graphs: they read what changes from step to step, and the host's
compile node drops the guards that would notice. So once somebody compiles, the override is there in dense phases too,
where it only passes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..kernels.attention import resolve_backend
from .dense_blocks import check_blocks
from .layout import is_wan
from .model_call import conclude, prepare, step_index
from .record import Recorder
from .settings import FROM_FILE, KEY, Patched, Settings

__all__ = ["PatchError", "apply_patch", "step_index"]

logger = logging.getLogger(__name__)

# The host's own names (comfy.patcher_extension); a host test holds them equal.
DIFFUSION_MODEL = "diffusion_model"
ON_PRE_RUN = "on_pre_run"
ON_CLEANUP = "on_cleanup"

# On a block patch of ours: the patch of another node that stood there before, or None.
INNER = "fpsattention_inner"
_OVERRIDE = "optimized_attention_override"


class PatchError(ValueError):
    """A model that cannot be patched; the message is one sentence for the user."""


def apply_patch(model: Any, settings: Settings) -> Any:
    """Return a clone of ``model`` that runs ``settings``.

    Raises PatchError for a model that is not Wan, DenseBlocksError for blocks that it does not have, and BackendError
    when a named backend cannot run a phase of the schedule, always before anything is sampled.
    """
    diffusion_model = model.get_model_object("diffusion_model")
    if not is_wan(diffusion_model):
        raise PatchError(
            f"FPSAttention works on Wan models, this one is {type(model.model).__name__}; "
            "connect a Wan2.1 or Wan2.2 diffusion model."
        )
    check_blocks(settings.dense_blocks, len(diffusion_model.blocks))
    _check_backends(model, diffusion_model, settings)

    settings = _beside_an_earlier_patch(model, settings)
    patched = Patched(settings)
    m = model.clone()
    m.set_attachments(KEY, patched)
    mark = _install(m, patched)
    for index in range(len(diffusion_model.blocks)):
        m.set_model_patch_replace(_block_patch(mark, index, _present_patch(m, index)), "dit", "double_block", index)
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
    """Return ``settings`` with a note if ``model`` was patched before, by a node with another schedule or backend."""
    earlier = model.get_attachment(KEY)
    if not isinstance(earlier, Patched):
        return settings
    before = earlier.settings
    if (before.schedule, before.backend) == (settings.schedule, settings.backend) or before.source == FROM_FILE:
        return settings
    note = (
        f"this model was already patched by an FPSAttention node (schedule from {before.source}, backend "
        f"{before.backend}); this later node replaces that patch."
    )
    return replace(settings, notes=(*settings.notes, note))


def _install(m: Any, patched: Patched) -> Callable:
    """Put wrapper and callbacks on ``m``, in place of an earlier patch of ours; return the markers' function."""
    recorder, settings = patched.recorder, patched.settings
    current = {"run": _make_wrapper(recorder, settings), "mark": _mark}
    kept = {"error": None}

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return current["run"](executor, *args, **kwargs)

    def mark(index: int, inner: Callable | None, args: dict, extra: dict) -> dict:
        return current["mark"](index, inner, args, extra)

    def before(*_: Any) -> None:
        run = recorder.begin()
        for note in settings.notes:
            if note not in run.notes:
                run.notes.append(note)
        kept["error"] = sys.exc_info()[1]
        # Importing dynamo takes a second, so only where somebody compiles.
        if _compiling():
            current["run"] = torch.compiler.disable(_make_wrapper(recorder, settings), recursive=False)
            current["mark"] = torch.compiler.disable(_mark, recursive=False)

    def after(*_: Any) -> None:
        error = sys.exc_info()[1]
        recorder.end(None if error is kept["error"] else error)

    m.remove_wrappers_with_key(DIFFUSION_MODEL, KEY)
    m.add_wrapper_with_key(DIFFUSION_MODEL, KEY, wrapper)
    for call_type, callback in ((ON_PRE_RUN, before), (ON_CLEANUP, after)):
        m.remove_callbacks_with_key(call_type, KEY)
        m.add_callback_with_key(call_type, KEY, callback)
    return mark


def _compiling() -> bool:
    """True if somebody may compile models in this process."""
    return "torch._dynamo" in sys.modules


def _present_patch(m: Any, index: int) -> Callable | None:
    """Return the block patch that stands at ``index``, without an earlier one of ours."""
    options = m.model_options.get("transformer_options", {})
    present = options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
    while hasattr(present, INNER):
        present = getattr(present, INNER)
    return present


def _block_patch(mark: Callable, index: int, inner: Callable | None) -> Callable:
    def patch(args: dict, extra: dict) -> dict:
        return mark(index, inner, args, extra)

    setattr(patch, INNER, inner)
    return patch


def _mark(index: int, inner: Callable | None, args: dict, extra: dict) -> dict:
    """Run block ``index`` between two marks."""
    # Some nodes that bring a forward of their own hand the options over in the second place.
    options = args.get("transformer_options") or extra.get("transformer_options") or {}
    call = options.get(KEY)
    entered = call is not None and call.enter(index)
    out = inner(args, extra) if inner is not None else extra["original_block"](args)
    # After an error nothing is counted: the run ends, and the wrapper drops the call.
    if entered:
        call.leave(index)
    return out


def _make_wrapper(recorder: Recorder, settings: Settings) -> Callable:
    def run(
        executor: Any,
        x: Any,
        timestep: Any,
        context: Any,
        clip_fea: Any = None,
        time_dim_concat: Any = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> Any:
        options = {} if transformer_options is None else transformer_options
        previous = options.get(_OVERRIDE)
        conditions = {**kwargs, "clip_fea": clip_fea}
        model = executor.class_obj
        call = prepare(recorder, settings, model, x, context, time_dim_concat, options, conditions, previous)
        if call is None:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        options[KEY] = call
        compiling = _compiling()
        if call.sparse is not None or compiling:
            options[_OVERRIDE] = torch.compiler.disable(call.override) if compiling else call.override
        try:
            out = executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        finally:
            options.pop(KEY, None)
            if previous is None:
                options.pop(_OVERRIDE, None)
            else:
                options[_OVERRIDE] = previous
        conclude(recorder, call)
        return out

    return run
