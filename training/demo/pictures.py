"""The demo's pictures: frames side by side, and what the schedule does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...kernels.grid import TokenGrid
from ...kernels.outlook import sampler_sigmas
from ..sparse import SparseAttention
from .rows import Row

COLORS = ("#4878a8", "#d08a3e", "#5f9e6e", "#a85b7a", "#7a6fb0")


def side_by_side(videos: dict[str, torch.Tensor], path: Path, columns: int = 5) -> Path:
    """Write one picture, a row of frames per video (uint8 ``(T, H, W, 3)``, by title), and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = next(iter(videos.values())).shape[1:3]
    figure = Figure(figsize=(2.0 * columns, 2.0 * len(videos) * height / width + 0.28 * len(videos)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(videos), columns, squeeze=False)
    for row, (title, video) in zip(axes, videos.items()):
        times = torch.linspace(0, len(video) - 1, columns).round().long().tolist()
        for axis, time in zip(row, times):
            axis.imshow(video[time].numpy())
            axis.set_axis_off()
        row[0].set_title(title, loc="left", fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.26 / figure.get_figheight(), bottom=0.01, wspace=0.03)
    figure.savefig(path, dpi=110)
    return path


def schedule_plot(
    attention: SparseAttention, grid: TokenGrid, rows: dict[str, Row], steps: int, shift: float, path: Path
) -> Path:
    """Write the plot of density per sampling step, and of the loss excess per noise level, and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sigmas = sampler_sigmas(steps, shift)[:-1]
    densities = [attention.density(grid, sigma) for sigma in sigmas]
    figure = Figure(figsize=(10, 4))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    seen = set()
    for step, (sigma, density) in enumerate(zip(sigmas, densities, strict=True)):
        index, phase = attention.schedule.at(sigma)
        label = None
        if index not in seen:
            extents = phase.selector or " ".join("all" if e is None else str(e) for e in phase.window or ())
            if density is None:
                extents += ", chosen online"
            label = f"{phase.attention} {phase.granularity or ''} {extents} (to sigma {phase.until:g})"
            seen.add(index)
        left.bar(step + 1, 100 * (density or 0.0), color=COLORS[index % len(COLORS)], label=label)
    left.set(
        xlabel=f"step (shift {shift:g})",
        ylabel="density, %",
        title="The schedule at this size",
        ylim=(0, 130 * max(density or 0.0 for density in densities) or 100),
    )
    left.legend(fontsize=8)
    _excess(right, rows)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


def _excess(axis, rows: dict[str, Row]) -> None:
    levels: Sequence[float] = sorted(rows["D"].validation.per_sigma, reverse=True)
    for key, against, color in (("A", "base", COLORS[3]), ("B", "D", COLORS[1]), ("C", "D", COLORS[2])):
        excess = [100 * (rows[key].validation.per_sigma[s] / rows[against].validation.per_sigma[s] - 1) for s in levels]
        axis.plot(range(len(levels)), excess, marker="o", color=color, label=f"{key} over {against}")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xticks(range(len(levels)), [f"{s:g}" for s in levels])
    axis.set(xlabel="sigma", ylabel="loss excess, %", title="What sparsity costs, by noise level")
    axis.legend(fontsize=8)
