"""The plan of a run, told before it starts: tokens, tiles, densities, parameters, memory, files. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..kernels.attention import resolve_backend
from ..kernels.grid import TokenGrid
from .config import RunConfig
from .data.survey import survey
from .distributed import World, pick_device
from .names import HEAD_DIM, WanShape, planned_shape
from .prepare import compute_dtype, data_grid

# Bytes that autograd keeps per token and block, measured on diffusers' Wan with torch's saved-tensor hooks:
# (per channel of dim, per channel of ffn).
SAVED = {"fp32": (88, 8), "bf16": (68, 4)}
# Outside the blocks, per channel of dim.
SAVED_OUTSIDE = 17
DENSITY_SAMPLES = 400


@dataclass(frozen=True)
class Memory:
    """A step's memory in bytes."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def estimate_memory(config: RunConfig, shape: WanShape, tokens: int) -> Memory:
    """Return what a training step needs: float32 weights, gradients and two moments, and the saved activations."""
    weights = shape.parameters * 4
    per_dim, per_ffn = SAVED[config.dtype]
    block = (per_dim * shape.dim + per_ffn * shape.ffn_dim) * tokens
    element = 4 if config.dtype == "fp32" else 2
    if config.activation_checkpointing != "none":
        # Every block keeps its input; one block at a time is recomputed with all that it saves.
        activations = shape.layers * shape.dim * element * tokens + block
    else:
        activations = shape.layers * block
    activations = config.optim.batch * (activations + SAVED_OUTSIDE * shape.dim * tokens)
    return Memory(weights, weights, 2 * weights, weights if config.ema else 0, activations)


def phase_table(config: RunConfig, grid: TokenGrid, heads: int) -> tuple[list[str], float]:
    """Return one line per phase, and the mean density over the training's noise levels."""
    attention = config.attention.resolved()
    sigmas = config.flow.resolved().quantiles(DENSITY_SAMPLES)
    plans = attention.plans(grid, heads)
    lines, mean = [], 0.0
    for index, phase in enumerate(attention.schedule.phases):
        inside = [sigma for sigma in sigmas if attention.phase(sigma) == index]
        share = len(inside) / len(sigmas)
        text = f"  sigma >= {phase.until:.2f}  {phase.attention:<5} "
        if plans is None or phase.attention == "dense":
            density: float | None = 1.0
            text += f"{'':<30}"
        else:
            facts = plans.describe(phase.until)
            density = facts["density"]
            tile = "x".join(map(str, facts["tile"]))
            text += f"{facts['granularity'] or '-':<5} {facts['window']:<12} {facts['tiles']} tiles of {tile}".ljust(30)
        shown = "chosen online" if density is None else f"density {density:6.1%}"
        lines.append(f"{text}  {shown}  {share:4.0%} of the training steps")
        mean += share * (1.0 if density is None else density)
    return lines, mean


def describe_run(config: RunConfig) -> str:
    """Return the plan as text. Raises ModelError if the model's file cannot be used; missing data are only named."""
    shape, grid = planned_shape(config.model), data_grid(config.data)
    lines, mean = phase_table(config, grid, shape.heads)
    memory = estimate_memory(config, shape, grid.video)
    optim, data = config.optim, config.data
    seconds = data.frames / data.fps
    out = [
        f"model        {config.model.path or 'random weights'}",
        f"             {shape.parameters / 1e6:,.2f} M parameters: dim {shape.dim} "
        f"({shape.heads} heads of {HEAD_DIM}), ffn {shape.ffn_dim}, {shape.layers} layers",
        f"sample       {data.frames} frames of {data.width} x {data.height} at {data.fps:g} fps ({seconds:.2f} s)",
        f"             {grid.video:,} tokens: grid {grid.t} x {grid.h} x {grid.w}",
        f"attention    {_backend(config)}",
        *lines,
        f"             mean density over the training steps {mean:.1%}",
        f"training     {optim.steps} steps of {optim.samples} samples ({optim.batch} per forward), lr {optim.lr:g} "
        f"({optim.decay}, warm-up {optim.warmup}), shift {config.flow.shift:g}",
        f"memory       {_size(memory.total)}: weights {_size(memory.weights)}, gradients {_size(memory.gradients)}, "
        f"optimizer {_size(memory.optimizer)}, average {_size(memory.average)}, "
        f"activations {_size(memory.activations)}"
        + (" (checkpointed)" if config.activation_checkpointing != "none" else ""),
        *(f"{'' if number else 'data':<12} {line}" for number, line in enumerate(survey(data))),
        f"vae          {config.vae.path}{_missing(config.vae.path)}",
        f"checkpoints  {config.checkpoint.dir}: {config.checkpoint.keep} x "
        f"{_size(memory.weights + memory.optimizer + memory.average)}",
        f"output       {Path(config.output.dir) / config.output.name}.safetensors: "
        f"{_size(shape.parameters * (2 if config.output.dtype == 'bf16' else 4))}",
    ]
    return "\n".join(out)


def _backend(config: RunConfig) -> str:
    attention = config.attention.resolved()
    kinds = sorted({phase.attention for phase in attention.schedule.phases} - {"dense"})
    if not kinds:
        return "dense throughout"
    device = pick_device(config.device, World())
    said = []
    for kind in kinds:
        name, note = resolve_backend(attention.backend, device, compute_dtype(config), HEAD_DIM, kind)
        said.append(f"{kind} on {name} ({device.type})" + (f"; {note}" if note and device.type != "cpu" else ""))
    return ", ".join(said)


def _missing(path: str) -> str:
    return "" if Path(path).expanduser().exists() else " (not there yet)"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit in ("B", "KiB") else f"{count:,.1f} {unit}"
        count /= 1024
