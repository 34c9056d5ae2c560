"""The plan of a run, told before it starts: tokens, tiles, densities, parameters, memory, files. Loads no weights."""

from __future__ import annotations

import os
from pathlib import Path

from ..kernels.attention import resolve_backend
from ..kernels.grid import TokenGrid
from .config import RunConfig
from .data.buckets import buckets_of, tokens
from .data.settings import TEXT_TOKENS
from .data.survey import survey
from .distributed import DeviceError, World, pick_device
from .fits import check_fits, check_quantized
from .flops import WITH_BACKWARD, forward_flops
from .memory import Plan, copied_bytes, plan_memory, saved_bytes
from .memory_advice import verdict
from .names import HEAD_DIM, WanShape, planned_shape
from .prepare import compute_dtype, data_grid
from .weights import open_weights

DENSITY_SAMPLES = 400


def phase_table(config: RunConfig, grid: TokenGrid, heads: int) -> tuple[list[str], float]:
    """Return one line per phase, and the mean density over the training's noise levels, where what is decided online
    counts as dense."""
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
            # A head table may have several bands in a phase.
            each = [attention.density(grid, sigma, config.flow.text_dropout) for sigma in inside or [phase.until]]
            density = None if None in each else sum(each) / len(each)
            tile = "x".join(map(str, facts["tile"]))
            text += f"{facts['granularity'] or '-':<5} {facts['window']:<12} {facts['tiles']} tiles of {tile}".ljust(30)
        shown = "chosen online" if density is None else f"density {density:6.1%}"
        lines.append(f"{text}  {shown}  {share:4.0%} of the training steps")
        mean += share * (1.0 if density is None else density)
    if note := attention.carried_over(grid):
        lines.append(f"  note: {note}")
    return lines, mean


def describe_run(config: RunConfig, *, world: int | None = None, gpu_memory: float | None = None) -> str:
    """Return the plan as text, for ``world`` processes (None: as many as there are) and GPUs of ``gpu_memory`` GiB.

    Raises ModelError or ConfigError if the model cannot be used for this, DeviceError for processes that do not divide
    as configured; missing data are only named.
    """
    shape, grid = planned_shape(config.model), data_grid(config.data)
    processes = check_processes(config, world or int(os.environ.get("WORLD_SIZE", "1")))
    check_fits(config, shape)
    if config.model.path is not None and open_weights(config.model.path).msfp is not None:
        check_quantized(config)
    # Asked about other machines, the plan is for GPUs, whatever this one has.
    cuda = gpu_memory is not None or world is not None or pick_device(config.device, World()).type == "cuda"
    lines, mean = phase_table(config, grid, shape.heads)
    memory = plan_memory(config, shape, largest_grid(config), world=processes, cuda=cuda and config.device != "cpu")
    optim, data = config.optim, config.data
    seconds = data.frames / data.fps
    told, samples = survey(data)
    asked = [] if gpu_memory is None else [gpu_memory]
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
        f"             {_epochs(optim.steps * optim.samples, samples)}",
        f"             {_work(config, shape, grid, mean)}",
        *memory_lines(memory, processes, cuda),
        *(f"             {verdict(config, shape, largest_grid(config), processes, size)}" for size in asked),
        *(f"{'' if number else 'data':<12} {line}" for number, line in enumerate(told)),
        f"vae          {config.vae.path}{_missing(config.vae.path)}",
        *_disk(config, shape, grid, samples, copied_bytes(config, shape, processes)),
    ]
    return "\n".join(out)


def check_processes(config: RunConfig, world: int) -> int:
    """Return the number of processes; raises DeviceError where they do not divide as configured."""
    parallel = config.parallel
    for key, size in (("sequence", parallel.sequence), ("shard", parallel.shard or 1)):
        if world % size:
            raise DeviceError(
                f"parallel.{key} is {size}, which {world} processes cannot be divided into; "
                f"start a multiple of {size} (--world {world + size - world % size}), or lower parallel.{key}"
            )
    if config.optim.samples % (world // parallel.sequence):
        groups = world // parallel.sequence
        raise DeviceError(
            f"a step has {config.optim.samples} samples, which {groups} data-parallel processes cannot share equally; "
            f"set optim.global_batch to a multiple of {groups}"
        )
    return world


def largest_grid(config: RunConfig) -> TokenGrid:
    """Return the token grid of the largest samples that the data may have."""
    frames, height, width = max(buckets_of(config.data), key=tokens)
    return TokenGrid((frames - 1) // 4 + 1, height // 16, width // 16)


def memory_lines(plan: Plan, processes: int, cuda: bool) -> list[str]:
    """Return the memory of a process, part by part."""
    where = "GPU" if cuda else "CPU"
    each = f"on each of {processes} {where}s" if processes > 1 else f"on the {where}"
    lines = [f"memory       {_size(plan.total)} {each}, at the fullest moment ({plan.moment}):"]
    lines += [_part(name, size, plan) for name, size in sorted(plan.gpu.items(), key=lambda part: -part[1])]
    others = ", ".join(f"{name} {_size(size)}" for name, size in plan.moments.items() if name != plan.moment)
    lines.append(f"             other moments: {others}")
    if plan.cpu:
        lines.append(f"             {_size(sum(plan.cpu.values()))} of CPU memory for each process, offloaded:")
        lines += [_part(name, size, plan) for name, size in sorted(plan.cpu.items(), key=lambda part: -part[1])]
    return lines


def _part(name: str, size: int, plan: Plan) -> str:
    return f"               {name:<22} {_size(size):>10}" + (" (assumed)" if name in plan.assumed else "")


def _epochs(seen: int, samples: int) -> str:
    if not samples:
        return f"{seen:,} samples in all"
    return f"{seen:,} samples in all: {seen / samples:,.2f} epochs of about {samples:,}"


def _work(config: RunConfig, shape: WanShape, grid: TokenGrid, density: float) -> str:
    def of(density: float) -> float:
        one = forward_flops(shape, grid.video, density=density, text_tokens=config.data.text_length)
        return WITH_BACKWARD * config.optim.samples * one

    return f"{of(density) / 1e12:,.2f} TFLOP per step, {of(1.0) / 1e12:,.2f} with dense attention"


def _disk(config: RunConfig, shape: WanShape, grid: TokenGrid, samples: int, copied: int) -> list[str]:
    """Return what a run writes: states, from ``copied`` bytes of memory, the export, and the cache."""
    state, trainable = saved_bytes(config, shape)
    numbers = shape.parameters if config.adapters is None else trainable
    width = {"bf16": 2, "fp32": 4, "fp8": 1}[config.output.dtype]
    checkpoint, data = config.checkpoint, config.data
    out = [
        f"checkpoints  {checkpoint.dir}: {checkpoint.keep} x {_size(state)}, one more while it is written: "
        f"{_size((checkpoint.keep + 1) * state)}",
        *([f"             written from a copy: {_size(copied)} of CPU memory for each process"] if copied else []),
        f"output       {Path(config.output.dir) / config.output.name}.safetensors: {_size(numbers * width)}",
    ]
    if samples:
        latent = 16 * grid.video * 4 * 2
        text = 0 if data.text_encoder == "zeros" else TEXT_TOKENS * 4096 * 2
        out.append(f"cache        {data.cache}: about {_size(samples * (latent + text))}")
    return out


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
