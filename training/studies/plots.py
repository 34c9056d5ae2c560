"""The study's pictures, drawn from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INK, GRID = "#222222", "#dddddd"
COLORS = ("#3b6fb6", "#d1603d", "#4a9a62", "#8a63b0", "#b08a2e", "#666666")


def figure(columns: int = 1, width: float = 7.0, height: float = 4.0):
    """Return a figure and its axes in a row."""
    return panels(1, columns, width, height)


def panels(rows: int, columns: int, width: float, height: float):
    """Return a figure and its axes, row after row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.grid(True, color=GRID, linewidth=0.6)
        one.set_axisbelow(True)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    return made, axes


def save(made, path: Path) -> Path:
    """Write a figure as PNG, without anything that differs from one call to the next, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=110, metadata={"Software": None})
    return path


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Return running means over ``window`` values."""
    return np.convolve(np.asarray(values, dtype=float), np.ones(window) / window, mode="valid")


def plot_base(held_out: Mapping[str, float], path: Path) -> Path:
    """Draw the base's held-out loss."""
    made, (axis,) = figure(width=5.5, height=3.2)
    axis.plot([int(step) for step in held_out], list(held_out.values()), marker="o", color=COLORS[0])
    axis.set(xlabel="step of the base", ylabel="held-out loss, dense")
    return save(made, path)


def plot_core(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, window: int = 20) -> Path:
    """Draw how far joint fine-tunes' training loss is above the dense ones' on the same batches; pairs by label."""
    made, (axis,) = figure()
    for color, (label, (dense, joint)) in zip(COLORS, curves.items()):
        excess = 100 * (smooth(joint, window) / smooth(dense, window) - 1)
        axis.plot(np.arange(len(excess)) + window, excess, color=color, label=label)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set(
        xlabel="fine-tuning step", ylabel=f"joint over dense, training loss, % (mean of {window})", ylim=(-2, None)
    )
    axis.legend(frameon=False)
    return save(made, path)


def plot_density(rows: Mapping[str, Sequence[tuple[float, float, float, float]]], path: Path) -> Path:
    """Draw excess over the dense control against density; rows by shape: (density, free, control, joint)."""
    made, axes = figure(2, width=9.5)
    for axis, (shape, title) in zip(axes, (("time", "windows that keep all of time"), ("cube", "cubic windows"))):
        points = rows[shape]
        x = [100 * point[0] for point in points]
        for column, label, color, marker in (
            (1, "training-free, over the base (A)", COLORS[5], "s"),
            (2, "dense fine-tune used sparse (B)", COLORS[1], "o"),
            (3, "joint fine-tune (C)", COLORS[0], "D"),
        ):
            axis.plot(x, [100 * point[column] for point in points], color=color, marker=marker, label=label)
        axis.set(xscale="log", xlabel="mean density, %", title=title)
        axis.set_xticks(x, [f"{value:.1f}".removesuffix(".0") for value in x])
        axis.minorticks_off()
        axis.axhline(0, color=INK, linewidth=0.8)
    axes[0].set_ylabel("excess held-out loss, %")
    axes[0].legend(frameon=False, fontsize=8)
    top = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(-1, top)
    return save(made, path)


def plot_sigma(rows: Mapping[str, Mapping[str, float]], dense: Mapping[str, float], path: Path) -> Path:
    """Draw excess per noise level; rows by label: loss per sigma."""
    made, (axis,) = figure()
    sigmas = sorted(dense, key=float)
    for color, marker, (label, losses) in zip(COLORS[1:], "osD", rows.items()):
        x = [float(s) for s in sigmas]
        axis.plot(x, [100 * (losses[s] / dense[s] - 1) for s in sigmas], color=color, marker=marker, label=label)
    axis.invert_xaxis()
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set(xlabel="sigma (1 is pure noise)", ylabel="excess held-out loss over D, %")
    axis.legend(frameon=False)
    return save(made, path)


def plot_quantization(results: Mapping[float, Mapping[str, Any]], path: Path) -> Path:
    """Draw signal-to-noise ratio per noise level: one panel per input, e4m3 solid and INT8 dashed."""
    from .quantization import GRANULARITIES, INPUTS

    made, axes = figure(3, width=12, height=4.2)
    sigmas = sorted(results)
    for axis, kind in zip(axes, INPUTS):
        for color, granularity in zip(COLORS, GRANULARITIES):
            for form, style in (("e4m3", "-"), ("int8", "--")):
                values = [results[s]["inputs"][kind][f"{form}, {granularity}, dense"]["snr"] for s in sigmas]
                axis.plot(sigmas, values, style, color=color, label=f"{granularity}, {form.replace('int', 'INT')}")
        axis.invert_xaxis()
        std = np.mean([results[s]["inputs"][kind]["logits"]["std"] for s in sigmas])
        axis.set(xlabel="sigma", title=f"{kind} (logit std {std:.1f})")
    axes[0].set_ylabel("SNR of attention's output, dB")
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside right", frameon=False, fontsize=8)
    return save(made, path)


def plot_steps(results: Mapping[float, Mapping[str, Any]], path: Path) -> Path:
    """Draw cosine, MSE and SNR per noise level: FP8 alone, sparsity alone, both."""
    made, axes = figure(3, width=12, height=3.8)
    sigmas = sorted(results)
    for axis, metric, label in zip(axes, ("cosine", "mse", "snr"), ("1 - cosine", "MSE", "SNR, dB")):
        for color, marker, name in zip(
            COLORS, "osD", ("FP8 attention, dense", "sparsity alone", "FP8 attention, sparse, against dense")
        ):
            values = [results[s]["inputs"]["natural"][name][metric] for s in sigmas]
            values = [1 - value for value in values] if metric == "cosine" else values
            axis.plot(sigmas, values, color=color, marker=marker, label=name)
        if metric != "snr":
            axis.set_yscale("log")
        axis.invert_xaxis()
        axis.set(xlabel="sigma", title=label)
    axes[2].legend(frameon=False, fontsize=8)
    return save(made, path)
