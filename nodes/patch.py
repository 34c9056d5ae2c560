"""The model patch: a wrapper around the diffusion model and a marker around each of its blocks.

The wrapper runs once per model call. It reads sigma, finds the phase, prepares plans and, in a sparse phase only,
installs the attention override on top of whatever other nodes installed. In a dense phase nothing is installed, so the
result is the host's own, bit for bit. The markers tell self-attention from cross-attention.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..kernels.attention import resolve_backend
from ..kernels.plan import plans_for
from .layout import is_wan, sequence_layout
from .override import Call
from .record import Recorder, Step
from .settings import KEY, Patched, Settings

logger = logging.getLogger(__name__)

# The host's own names (comfy.patcher_extension); a host test holds them equal.
DIFFUSION_MODEL = "diffusion_model"
ON_PRE_RUN = "on_pre_run"
ON_CLEANUP = "on_cleanup"

_INNER = "fpsattention_inner"
_OVERRIDE = "optimized_attention_override"


class PatchError(ValueError):
    """A model that cannot be patched; the message is one sentence for the user."""


def apply_patch(model: Any, settings: Settings) -> Any:
    """Return a clone of ``model`` that runs ``settings``.

    Raises PatchError for a model that is not Wan, and BackendError when a named backend cannot run a phase of the
    schedule, in both cases before anything is sampled.
    """
    diffusion_model = model.get_model_object("diffusion_model")
    if not is_wan(diffusion_model):
        raise PatchError(
            f"FPSAttention works on Wan models, this one is {type(model.model).__name__}; "
            "connect a Wan2.1 or Wan2.2 diffusion model."
        )
    _check_backends(model, diffusion_model, settings)

    patched = Patched(settings)
    m = model.clone()
    m.set_attachments(KEY, patched)
    _install(m, patched)
    if not settings.schedule.is_dense:
        for index in range(len(diffusion_model.blocks)):
            m.set_model_patch_replace(_block_patch(index, _present_patch(m, index)), "dit", "double_block", index)
    for note in settings.notes:
        logger.warning("FPSAttention: %s", note)
    return m


def _check_backends(model: Any, diffusion_model: Any, settings: Settings) -> None:
    head_dim = diffusion_model.dim // diffusion_model.num_heads
    dtype = _compute_dtype(model)
    for attention in sorted({phase.attention for phase in settings.schedule.phases} - {"dense"}):
        resolve_backend(settings.backend, torch.device(model.load_device), dtype, head_dim, attention)


def _compute_dtype(model: Any) -> torch.dtype:
    """The dtype that q, k and v will have: FP8 weights still compute in a wider one."""
    inner = model.model
    dtype = getattr(inner, "manual_cast_dtype", None) or inner.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.bfloat16


def _install(m: Any, patched: Patched) -> None:
    """Put wrapper and callbacks on ``m``, in place of an earlier patch of ours."""
    recorder, settings = patched.recorder, patched.settings
    implementation = _make_wrapper(recorder, settings)
    current = {"run": implementation}

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return current["run"](executor, *args, **kwargs)

    def before(*_: Any) -> None:
        run = recorder.begin()
        for note in settings.notes:
            if note not in run.notes:
                run.notes.append(note)
        # Sigma and plans are read on the host: keep them out of a compiled graph. Importing dynamo takes a second,
        # so only where somebody compiles.
        if "torch._dynamo" in sys.modules:
            current["run"] = torch.compiler.disable(implementation, recursive=False)

    def after(*_: Any) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        recorder.end()

    m.remove_wrappers_with_key(DIFFUSION_MODEL, KEY)
    m.add_wrapper_with_key(DIFFUSION_MODEL, KEY, wrapper)
    for call_type, callback in ((ON_PRE_RUN, before), (ON_CLEANUP, after)):
        m.remove_callbacks_with_key(call_type, KEY)
        m.add_callback_with_key(call_type, KEY, callback)


def _present_patch(m: Any, index: int) -> Callable | None:
    """Return the block patch that stands at ``index``, without an earlier one of ours."""
    options = m.model_options.get("transformer_options", {})
    present = options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
    while hasattr(present, _INNER):
        present = getattr(present, _INNER)
    return present


def _block_patch(index: int, inner: Callable | None) -> Callable:
    def patch(args: dict, extra: dict) -> dict:
        call = args.get("transformer_options", {}).get(KEY)
        entered = call is not None and call.enter(index)
        try:
            return inner(args, extra) if inner is not None else extra["original_block"](args)
        finally:
            if entered:
                call.leave()

    setattr(patch, _INNER, inner)
    return patch


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
        call = _prepare(recorder, settings, executor.class_obj, x, time_dim_concat, options, kwargs)
        if call is None:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        options[KEY] = call
        options[_OVERRIDE] = call.override
        try:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        finally:
            options.pop(KEY, None)
            if call.previous is None:
                options.pop(_OVERRIDE, None)
            else:
                options[_OVERRIDE] = call.previous
            _conclude(recorder, call)

    return run


def _prepare(
    recorder: Recorder,
    settings: Settings,
    diffusion_model: Any,
    x: Any,
    time_dim_concat: Any,
    options: dict,
    kwargs: dict,
) -> Call | None:
    """Record the step; return the Call of a sparse phase, or None where the host's attention runs untouched."""
    run = recorder.current()
    sigmas = options.get("sigmas")
    if sigmas is None:
        run.note("the sampler does not say its sigma, so attention stays dense.")
        return None
    values = sigmas.flatten().tolist()
    sigma = values[0]
    if not run.sample_sigmas and options.get("sample_sigmas") is not None:
        run.sample_sigmas = [float(s) for s in options["sample_sigmas"]]

    layout = sequence_layout(diffusion_model, x, time_dim_concat, kwargs)
    plans = plans_for(settings.schedule, layout.grid, diffusion_model.num_heads, **settings.tiles)
    shown = plans.describe(sigma)
    blocks = len(diffusion_model.blocks)
    step = recorder.step(
        sigma,
        Step(
            sigma=sigma,
            index=step_index(run.sample_sigmas, sigma),
            phase=shown["phase"],
            attention=shown["attention"],
            granularity=shown["granularity"],
            window=shown["window"],
            grid=layout.grid.shape,
            prefix=layout.grid.prefix,
            suffix=layout.grid.suffix,
            tile=shown["tile"] if shown["attention"] != "dense" else None,
            tiles=shown["tiles"] if shown["attention"] != "dense" else 0,
        ),
    )
    if len({settings.schedule.at(value)[0] for value in values}) > 1:
        step.decline("the batch mixes sigmas of different phases", blocks)
        return None
    if shown["attention"] == "dense":
        step.dense += blocks
        return None
    head_dim = diffusion_model.dim // diffusion_model.num_heads
    backend, note = resolve_backend(settings.backend, x.device, x.dtype, head_dim, shown["attention"])
    if note:
        run.note(note)
    if shown["density"] is not None:
        step.planned_density = shown["density"]
    step.backend = backend
    layers = [plans.at(sigma, layer, x.device) for layer in range(blocks)]
    return Call(layers, backend, step, layout.known, options.get(_OVERRIDE))


def _conclude(recorder: Recorder, call: Call) -> None:
    call.settle()
    run = recorder.current()
    for reason in call.step.reasons:
        run.note(f"stays dense: {reason}." if call.step.reasons[reason] else f"{reason}.")
    if call.previous is not None:
        run.note("another attention override is present; it gets cross-attention and everything that stays dense.")


def step_index(sample_sigmas: list[float], sigma: float) -> int | None:
    """Return the sampler step that ``sigma`` belongs to, counted in this sampler call, or None without its list."""
    if len(sample_sigmas) < 2:
        return None
    return max(sum(s + 1e-6 >= sigma for s in sample_sigmas[:-1]) - 1, 0)
