"""Pictures of heads, like Sparse-vDiT's (arXiv 2506.03065): maps, the table of families, densities, curves.

Everything takes plain arrays and writes a PNG, the same bytes for the same arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..kernels.pattern_text import FAMILIES
from .studies.plots import COLORS, figure, save

# Full is what costs, skip what is gone; hues that stay apart for color-blind readers (Okabe and Ito).
FAMILY_COLORS = dict(
    zip(FAMILIES, ("#4d4d4d", "#e8e8e8", "#0072b2", "#e69f00", "#009e73", "#cc3377", "#56b4e9"), strict=True)
)
MAP_COLORS = "magma"
# Below this many cells a density is written into its cell.
FEW_CELLS = 200
COLUMNS_OF_MAPS = 4
# Inches per head and layer.
CELL = 0.22
LONGEST_TITLE = 34


class PlotError(ValueError):
    """Arrays that cannot be drawn; the message is one sentence."""


def plot_maps(
    frames: np.ndarray, columns: np.ndarray, pieces: tuple[int, int, int], titles: Sequence[str], path: Path
) -> Path:
    """Draw chosen heads: attention from frame to frame, and beside it what each key tile gets.

    ``frames`` ``(heads, t, t)`` is mass from query frame (row) to key frame; ``columns`` ``(heads, tiles)`` is column
    mass of the video's tiles in raster order, drawn as a multiple of uniform attention, one block per tile of time.
    """
    from matplotlib.ticker import MaxNLocator

    heads = len(frames)
    if not heads or len(columns) != heads or len(titles) != heads or columns.shape[1] != np.prod(pieces):
        raise PlotError(
            f"maps need frames, columns of {int(np.prod(pieces))} tiles and a title per head, got {frames.shape}, "
            f"{columns.shape} and {len(titles)}."
        )
    across = min(heads, COLUMNS_OF_MAPS)
    down = -(-heads // across)
    made, grid = _panels(down, 2 * across, width=3.9 * across, height=2.3 * down)
    for number in range(down * across):
        left, right = grid[number // across][2 * (number % across) :][:2]
        if number >= heads:
            left.set_axis_off()
            right.set_axis_off()
            continue
        # Uniform attention stays dark, here and beside: the scale reaches at least four times as far.
        top = max(4.0 / frames.shape[2], float(frames[number].max()))
        left.imshow(frames[number], cmap=MAP_COLORS, vmin=0, vmax=top, interpolation="nearest")
        left.set_title(_short(titles[number]), fontsize=8, loc="left")
        left.set_ylabel("query frame", fontsize=7)
        left.set_xlabel("key frame", fontsize=7)
        lift = columns[number] * columns.shape[1] / max(float(columns[number].sum()), 1e-30)
        shown = right.imshow(
            _blocks(lift, pieces), cmap=MAP_COLORS, vmin=0, vmax=max(4.0, float(lift.max())), interpolation="nearest"
        )
        right.set_title(
            "key tiles, x uniform" + ("\na block per tile of time" if pieces[0] > 1 else ""), fontsize=7, loc="left"
        )
        right.set_xticks([])
        right.set_yticks([])
        made.colorbar(shown, ax=right, shrink=0.8, pad=0.03).ax.tick_params(labelsize=6)
        left.tick_params(labelsize=6)
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return save(made, path)


def plot_families(words: np.ndarray, path: Path, title: str = "") -> Path:
    """Draw the table of families, words ``(layers, heads)``: one cell per head, its legend counts them."""
    words = np.asarray(words)
    unknown = sorted(set(words.ravel().tolist()) - set(FAMILIES))
    if words.ndim != 2 or not words.size or unknown:
        raise PlotError(
            f"a table of families has words of {', '.join(FAMILIES)} by layer and head, got "
            f"{unknown[0][:40] if unknown else words.shape}."
        )
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    layers, heads = words.shape
    numbers = np.vectorize(FAMILIES.index)(words)
    made, ((axis,),) = _panels(1, 1, width=CELL * heads + 2.7, height=max(2.3, CELL * layers + 0.9))
    axis.imshow(
        numbers,
        cmap=ListedColormap([FAMILY_COLORS[name] for name in FAMILIES]),
        vmin=-0.5,
        vmax=len(FAMILIES) - 0.5,
        interpolation="nearest",
        aspect="auto",
    )
    _cells(axis, layers, heads)
    counts = Counter(words.ravel().tolist())
    axis.legend(
        handles=[
            Patch(facecolor=FAMILY_COLORS[name], edgecolor="#888888", linewidth=0.4, label=f"{name} ({counts[name]})")
            for name in FAMILIES
            if counts[name]
        ],
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        fontsize=8,
    )
    axis.set_title(title, fontsize=9, loc="left")
    return save(made, path)


def plot_densities(densities: np.ndarray, titles: Sequence[str], path: Path) -> Path:
    """Draw the density of every head, 0 to 1, ``(bands, layers, heads)``: one panel per band with its mean."""
    densities = np.asarray(densities, dtype=float)
    if densities.ndim != 3 or not densities.size or len(titles) != len(densities):
        raise PlotError(
            f"densities have axes (bands, layers, heads) and a title per band, got {densities.shape} and {len(titles)}."
        )
    bands, layers, heads = densities.shape
    made, (axes,) = _panels(
        1, bands, width=bands * max(2.0, CELL * heads + 0.8) + 0.9, height=max(2.4, CELL * layers + 1)
    )
    for axis, values, title in zip(axes, densities, titles):
        shown = axis.imshow(100 * values, cmap="viridis", vmin=0, vmax=100, interpolation="nearest", aspect="auto")
        axis.set_title(f"{_short(title)}\nmean {100 * values.mean():.1f} %", fontsize=8, loc="left")
        _cells(axis, layers, heads)
        if layers * heads <= FEW_CELLS:
            for (layer, head), value in np.ndenumerate(100 * values):
                color = "white" if value < 60 else "black"
                axis.text(head, layer, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=color)
    made.colorbar(shown, ax=list(axes), label="density, %", shrink=0.9, pad=0.02)
    return save(made, path)


def plot_lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: str = "",
) -> Path:
    """Draw curves, (x, y) by label, each with its points; ``log`` names axes with a logarithmic scale ("x", "xy")."""
    if not curves or any(len(x) != len(y) or not len(x) for x, y in curves.values()):
        raise PlotError("curves need as many x as y, and at least one point each.")
    made, (axis,) = figure(width=6.4, height=4.0)
    marks = "osD^vP*X"
    for number, (label, (x, y)) in enumerate(curves.items()):
        axis.plot(
            x,
            y,
            color=COLORS[number % len(COLORS)],
            marker=marks[number % len(marks)],
            # Colors come around; then the line is another.
            linestyle=("-", "--", ":")[number // len(COLORS) % 3],
            markersize=4.5,
            label=label,
        )
    axis.set(
        xlabel=xlabel,
        ylabel=ylabel,
        xscale="log" if "x" in log else "linear",
        yscale="log" if "y" in log else "linear",
    )
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8)
    return save(made, path)


def _panels(down: int, across: int, width: float, height: float):
    """Return a figure and its axes ``[down][across]`` for pictures of cells."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(down, across, squeeze=False)


def _cells(axis, layers: int, heads: int) -> None:
    """Label cells of layers and heads, counted from 0, and draw lines between them."""
    for set_ticks, count, most in ((axis.set_yticks, layers, 20), (axis.set_xticks, heads, 20)):
        set_ticks(np.arange(0, count, -(-count // most)))
    axis.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)


def _blocks(values: np.ndarray, pieces: tuple[int, int, int]) -> np.ndarray:
    """Return tiles ``(t h w)`` as one picture: each tile of time is a block of h x w, blocks run left to right and
    down, with empty lines between them."""
    t, h, w = pieces
    # About as wide as high.
    across = min(t, max(1, round((t * (h + 1) / (w + 1)) ** 0.5)))
    down = -(-t // across)
    picture = np.full((down * (h + 1) - 1, across * (w + 1) - 1), np.nan)
    for number, block in enumerate(values.reshape(pieces)):
        y, x = divmod(number, across)
        picture[y * (h + 1) : y * (h + 1) + h, x * (w + 1) : x * (w + 1) + w] = block
    return picture


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 1] + "…"
