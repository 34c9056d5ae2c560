"""Plots of a result file: speed-up and E over density, and where the time goes. Without matplotlib there are none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from .figures import Comparison, baselines, cells_of, compare

log = logging.getLogger(__name__)
INK, FAINT = "#333333", "#999999"
COLORS = {
    "triton-fp8-128": "#c0392b", "triton-fp8-64": "#e67e22", "triton-bf16-128": "#2471a3", "triton-bf16-64": "#5dade2",
    "triton-int8-128": "#884ea0", "flex-128": "#1e8449", "vsa-64-triton": "#7d6608", "sol-attn-64": "#717d7e",
}  # fmt: skip
STAGES = {"attention": "#c0392b", "quantize": "#f5b041", "backward": "#2471a3", "other": "#bfc9ca"}


def draw(data: dict, path: Path) -> list[Path]:
    """Write the plots of a result file beside it, PNG and SVG, and return their paths; empty without matplotlib, and
    for what was not measured."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        log.warning("matplotlib is not installed, so there are no plots.")
        return []
    written = []
    for kind, figure in (("density", _density(pyplot, data)), ("stages", _stages(pyplot, data))):
        if figure is None:
            continue
        for suffix in (".png", ".svg"):
            target = path.with_name(f"{path.stem}-{kind}{suffix}")
            figure.savefig(target, dpi=130, bbox_inches="tight")
            written.append(target)
        pyplot.close(figure)
    return written


def shapes(data: dict) -> dict[str, dict[str, list[Comparison]]]:
    """Return, per shape and direction, every sparse or own contestant's comparisons by rising density."""
    found: dict[str, dict[str, list[Comparison]]] = {}
    for name, result in cells_of(data, "attention").items():
        shape = name.rsplit("-d", 1)[0]
        for contestant, entry in result["contestants"].items():
            if entry.get("family") in ("ours", "sparse") and (row := compare(name, result, contestant)):
                found.setdefault(shape, {}).setdefault(contestant, []).append(row)
    for rows in found.values():
        for line in rows.values():
            line.sort(key=lambda row: row.density)
    return found


def _density(pyplot: Any, data: dict) -> Any | None:
    """Return the figure of speed-up and E over density, None if no density was measured."""
    # The shape with the most densities says the most; the file's order decides between equals.
    found = shapes(data)
    if not found:
        return None
    shape = max(found, key=lambda name: sum(len(line) for line in found[name].values()))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    densities = sorted({row.density for line in found[shape].values() for row in line})
    ideal = [densities[0], 1.0]
    left.plot(ideal, [1 / d for d in ideal], "--", color=FAINT, linewidth=1, label="ideal: 1 / density")
    right.axhline(1.0, linestyle="--", color=FAINT, linewidth=1, label="nothing wasted")
    for contestant, line in found[shape].items():
        style = {"marker": "o", "markersize": 4, "label": contestant, "color": COLORS.get(contestant)}
        left.plot([r.density for r in line], [r.speedup for r in line], **style)
        right.plot([r.density for r in line], [r.efficiency for r in line], **style)
    for axes, title in (
        (left, "speed-up over the fastest dense BF16 of: " + ", ".join(baselines(data))),
        (right, "E = speed-up x density"),
    ):
        axes.set_xscale("log")
        _density_ticks(axes, densities)
        axes.set_xlabel("density")
        axes.set_title(title, fontsize=10, color=INK)
        axes.grid(True, which="major", color="#eeeeee")
    left.set_yscale("log")
    _ratio_ticks(left)
    right.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{_titled(data)}{shape}", fontsize=11, color=INK)
    figure.tight_layout()
    return figure


def _density_ticks(axes, densities: list[float]) -> None:
    # Targets are met only roughly, and neighbors would print over each other: one tick per spot.
    kept: list[float] = []
    for density in densities:
        if not kept or density / kept[-1] > 1.25:
            kept.append(density)
    axes.set_xticks(kept, [f"{d:.0%}" if d >= 0.095 else f"{d:.1%}" for d in kept])
    axes.set_xticks([], minor=True)


def _ratio_ticks(axes) -> None:
    low, high = axes.get_ylim()
    ticks = [t for t in (0.01, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50) if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}x" for t in ticks])
    axes.set_yticks([], minor=True)


def _stages(pyplot: Any, data: dict) -> Any | None:
    """Return the figure of our time by stage, None if none was measured."""
    rows = []
    for name, result in cells_of(data, "attention").items():
        ours = compare(name, result)
        share = result["contestants"][ours.ours].get("stages", {}).get("share") if ours else None
        if share:
            rows.append((f"{name}\n{ours.ours}", share))
    if not rows:
        return None
    rows = rows[:16]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.42 * len(rows)))
    start = [0.0] * len(rows)
    for stage, color in STAGES.items():
        values = [share.get(stage, 0.0) for _, share in rows]
        if any(values):
            axes.barh(range(len(rows)), values, left=start, color=color, label=stage, height=0.7)
            start = [a + b for a, b in zip(start, values)]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title(f"{_titled(data)}share of our time by stage", fontsize=10, color=INK)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / (0.8 + 0.42 * len(rows))), ncols=4, fontsize=8,
                frameon=False)  # fmt: skip
    return figure


def _titled(data: dict) -> str:
    return "STAND-IN, no card: " if data.get("standin") else f"{data.get('header', {}).get('card', '')}, "
