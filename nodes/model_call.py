"""What one call of the diffusion model will run: its sigma, token grid, phase, plans and backend, and its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..kernels.attention import choose_backend
from ..kernels.plan import Plans, plans_for
from .layout import Layout, control_blocks, sequence_layout
from .override import Call, Sparse
from .ready_plans import Ready
from .record import Recorder, Run, Step
from .settings import Settings

MIXED = "the batch mixes sigmas of different phases"
BRANCHES = (
    "the sampler does not say which samples are of the negative prompt, so all take the head table's patterns for the "
    "prompt."
)
SIGMA_NAN = "the sampler's sigma is not a number"
REPLACED_ALIKE = (
    "video and text are equally long and another node replaced the self-attention, so the two cannot be told apart"
)


def prepare(
    recorder: Recorder,
    settings: Settings,
    diffusion_model: Any,
    x: Any,
    context: Any,
    time_dim_concat: Any,
    options: dict,
    kwargs: dict,
    previous: Callable | None,
) -> Call | None:
    """Record the step and return its Call, without ``sparse`` where the host's attention runs; None without a sigma.

    ``options`` are the call's transformer_options, ``kwargs`` its further conditions, ``previous`` the attention
    override of another node.
    """
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
    blocks = len(diffusion_model.blocks)
    control, repeats = control_blocks(diffusion_model, kwargs)
    calls = blocks + len(control) * repeats
    recorder.clock.prepare(x.device)

    def dense(step: Step, reason: str | None = None) -> Call:
        return Call(step, blocks, recorder.clock, None, previous, calls, reason)

    if any(value != value for value in values):
        return dense(recorder.step(0.0, lambda: Step(0.0, None, 0, "dense", grid=layout.grid.shape)), SIGMA_NAN)

    plans = plans_for(settings.schedule, layout.grid, diffusion_model.num_heads, **settings.tiles)
    branches = _branches(run, settings, options, x.shape[0])
    ready = Ready(run, plans, blocks + len(control), x.device, branches)
    ready.build_ahead(sigma)
    step = recorder.step(sigma, lambda: _new_step(run, plans, layout, sigma))
    if step.grid != layout.grid.shape:
        shape = "x".join(map(str, layout.grid.shape))
        run.note(f"some model calls were of another part of the picture, with the grid {shape}.")
    if len(values) > 1 and len({ready.place(value) for value in values}) > 1:
        return dense(step, MIXED)
    if step.attention == "dense":
        return dense(step)
    alike = _alike(layout.grid.tokens, context, kwargs.get("clip_fea"))
    if alike and _replaced(diffusion_model):
        return dense(step, REPLACED_ALIKE)

    head_dim = diffusion_model.dim // diffusion_model.num_heads
    backend, note = choose_backend(settings.backend, x.device, x.dtype, head_dim, step.attention)
    if backend is None:
        return dense(step, note)
    if note:
        run.note(note)
    step.backend = backend
    layers, heads = ready.layers(sigma)
    # Control blocks are layers of their own, behind the main ones.
    behind = {main: layers[blocks + number] for main, number in control.items()}
    main = [None if block in settings.dense_blocks else layers[block] for block in range(blocks)]
    sparse = Sparse(main, layout.grid.tokens, backend, layout.known, alike, behind, repeats, heads)
    return Call(step, blocks, recorder.clock, sparse, previous)


def conclude(recorder: Recorder, call: Call) -> None:
    """The model call is over: settle its counts and say every new reason once."""
    run = recorder.current()
    run.marked = run.marked or call.blocks > 0
    call.settle(run.marked)
    for reason in call.step.reasons:
        run.note(f"stays dense: {reason}." if call.step.reasons[reason] else f"{reason}.")
    if call.previous is not None and call.sparse is not None:
        run.note("another attention override is present; it gets cross-attention and everything that stays dense.")
    if call.clock.kind is None:
        run.note("blocks are timed on NVIDIA and AMD GPUs and on the CPU only.")


def step_index(sample_sigmas: list[float], sigma: float) -> int | None:
    """Return the sampler step that ``sigma`` belongs to, counted in this sampler call, or None without its list."""
    if len(sample_sigmas) < 2:
        return None
    return max(sum(s + 1e-6 >= sigma for s in sample_sigmas[:-1]) - 1, 0)


def _new_step(run: Run, plans: Plans, layout: Layout, sigma: float) -> Step:
    shown = plans.describe(sigma)
    sparse = shown["attention"] != "dense"
    return Step(
        sigma=sigma,
        index=step_index(run.sample_sigmas, sigma),
        phase=shown["phase"],
        attention=shown["attention"],
        granularity=shown["granularity"],
        window=shown["window"],
        planned_density=1.0 if shown["density"] is None else shown["density"],
        grid=layout.grid.shape,
        prefix=layout.grid.prefix,
        suffix=layout.grid.suffix,
        tile=shown["tile"] if sparse else None,
        tiles=shown["tiles"] if sparse else 0,
    )


def _branches(run: Run, settings: Settings, options: dict, batch: int) -> tuple[int, ...]:
    """Return per sample whether it is of the prompt (0) or of the negative prompt (1), one number where it is all the
    same: the host stacks the branches of guidance in equal parts."""
    if settings.table is None or settings.table.branches == 1:
        return (0,)
    found = sample_branches(options, batch)
    if found is None:
        run.note(BRANCHES)
        return (0,)
    return found


def sample_branches(options: dict, batch: int) -> tuple[int, ...] | None:
    """Return the branch of guidance per sample, one number where it is all the same; None if the sampler does not say
    it."""
    order = options.get("cond_or_uncond")
    known = isinstance(order, list | tuple) and bool(order) and all(branch in (0, 1) for branch in order)
    if not known or batch % len(order):
        return None
    if len(set(order)) == 1:
        return (int(order[0]),)
    return tuple(int(branch) for branch in order for _ in range(batch // len(order)))


def _alike(tokens: int, context: Any, image: Any) -> bool:
    """True if text or the image of the condition is as long as the video."""
    return any(getattr(x, "ndim", 0) == 3 and x.shape[1] == tokens for x in (context, image))


def _replaced(diffusion_model: Any) -> bool:
    """True if another node put a forward of its own onto a self-attention."""
    attentions = [getattr(block, "self_attn", None) for block in diffusion_model.blocks]
    return any("forward" in vars(attention) for attention in attentions if hasattr(attention, "__dict__"))


def replaced_alike(diffusion_model: Any, tokens: int, context: Any, image: Any) -> bool:
    """True if self-attention and cross-attention cannot be told apart: both are equally long, and one was replaced."""
    return _alike(tokens, context, image) and _replaced(diffusion_model)
