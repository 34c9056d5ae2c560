"""The report's pictures: each draws one thing that a run's records say, and is left out where they say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .curves import Excess, Series, excess_over, excess_per_sigma, grouped, series, window_of
from .rates import BUCKETS, bucket_name, per_phase, per_sigma, rates

RUN, DENSE, ACCENT = "#1f5fa8", "#7a7a7a", "#c8553d"
PHASES = ("#1f5fa8", "#c8553d", "#3f8f5b", "#8a5fa8", "#b08a2e", "#4aa3a8")
NEAR = 0.02  # what the method's paper calls close to dense
FEW = 8  # samples; of fewer no mean is drawn


@dataclass(frozen=True)
class Panel:
    """One picture: its title, a sentence under it, and what draws it on matplotlib axes."""

    title: str
    said: str
    draw: Callable[[Any], None]
    wide: bool = False


@dataclass(frozen=True)
class Run:
    """A run's records with the name that the legend gives it."""

    name: str
    records: Sequence[dict[str, Any]]
    peak: float | None = None
    phases: tuple[str, ...] = ()


def make_panels(run: Run, dense: Run | None) -> list[Panel]:
    """Return the panels that the records have something for, in the order of the page."""
    excess = excess_over(run.records, dense.records) if dense is not None else None
    found = [
        _loss(run, dense),
        _excess(excess, dense) if excess is not None else None,
        _excess_bars(run, dense) if dense is not None else None,
        _held_out(run, dense),
        _phases(run),
        _sigmas(run),
        _norm(run),
        _blocks(run),
        _routes(run),
        _simple(run, "lr", "Learning rate", "learning rate", "As applied, warm-up and cuts included."),
        _speed(run),
        _waiting(run),
        _memory(run),
    ]
    return [panel for panel in found if panel is not None]


def _line(
    axes: Any, data: Series, color: str, label: str | None, *, raw: bool = True, window: int | None = None
) -> None:
    window = window or window_of(len(data))
    if raw and window > 1:
        thin = data.thinned()
        axes.plot(thin.steps, thin.values, color=color, alpha=0.18, linewidth=0.7)
    smooth = data.smoothed(window).thinned()
    axes.plot(smooth.steps, smooth.values, color=color, linewidth=1.6, label=label)


def _focus(axes: Any, shown: Sequence[Series]) -> None:
    """Let the axis follow the smoothed curves: single steps at extreme noise levels would flatten them."""
    values = np.concatenate([s.smoothed(window_of(len(s))).values for s in shown if len(s)])
    low, high = float(values.min()), float(values.max())
    room = 0.15 * (high - low) or 0.1 * abs(high) or 0.1
    axes.set_ylim(low - room, high + room)


def _loss(run: Run, dense: Run | None) -> Panel | None:
    ours = series(run.records, "loss")
    if not len(ours):
        return None
    theirs = series(dense.records, "loss") if dense is not None else Series(np.array([]), np.array([]))

    def draw(axes: Any) -> None:
        if len(theirs):
            _line(axes, theirs, DENSE, f"{dense.name} (dense)")
        _line(axes, ours, RUN, run.name)
        _focus(axes, [ours, theirs])
        for record in [r for r in run.records if r.get("loss") is None and "skipped" in r][:200]:
            axes.axvline(record["step"] + 1, color=ACCENT, linewidth=0.5, alpha=0.6)
        axes.set_ylabel("training loss")
        axes.legend()

    window = window_of(len(ours))
    said = f"Mean of the last {window} steps over single steps (pale)." if window > 1 else "Every step."
    return Panel("Training loss", said, draw, wide=True)


def _excess(excess: Excess, dense: Run) -> Panel:
    value, half = excess.last

    def draw(axes: Any) -> None:
        thin = np.unique(np.linspace(0, len(excess.steps) - 1, 800).round().astype(int))
        steps, values, spread = (100 * a[thin] if i else a[thin] for i, a in enumerate(
            (excess.steps, excess.values, excess.half)))  # fmt: skip
        axes.axhspan(0, 100 * NEAR, color="#3f8f5b", alpha=0.10, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.7)
        axes.fill_between(steps, values - spread, values + spread, color=RUN, alpha=0.15, linewidth=0)
        axes.plot(steps, values, color=RUN, linewidth=1.6)
        settled = values[min(len(values) - 1, excess.window) :]
        low, high = min(0.0, settled.min()), max(100 * NEAR, settled.max())
        room = 0.25 * (high - low)
        axes.set_ylim(low - room, high + room)
        axes.set_ylabel("excess over dense, %")

    same = "the same samples and noise levels in every step"
    if not excess.paired:
        same = f"the same samples and noise levels in only {excess.same} of {len(excess.steps)} steps: a wide interval"
    return Panel(
        "Excess over the dense run",
        f"{value:+.2%} ± {half:.2%} over the last {excess.window} common steps with {dense.name}: {same}. "
        "Green: below 2 %.",
        draw,
        wide=True,
    )


def _excess_bars(run: Run, dense: Run) -> Panel | None:
    found = {k: v for k, v in excess_per_sigma(run.records, dense.records).items() if v[2] >= FEW}
    if not found:
        return None

    def draw(axes: Any) -> None:
        places = [(key + 0.5) / BUCKETS for key in found]
        values, halves = ([100 * v[i] for v in found.values()] for i in (0, 1))
        axes.bar(places, values, color=RUN, width=0.85 / BUCKETS, alpha=0.85)
        axes.errorbar(places, values, yerr=halves, fmt="none", ecolor="black", elinewidth=0.9, capsize=2.5)
        axes.axhline(0, color="black", linewidth=0.7)
        for place, (_, _, count) in zip(places, found.values()):
            axes.annotate(f"n={count}", (place, 0), (0, 3), textcoords="offset points", ha="center", fontsize=6.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([i / BUCKETS for i in range(0, BUCKETS + 1, 2)])
        axes.set_xlabel("noise level sigma")
        axes.set_ylabel("excess over dense, %")

    return Panel(
        "Excess by noise level", "The same samples in both runs, last half of the common steps; 95 % intervals.", draw
    )


def _held_out(run: Run, dense: Run | None) -> Panel | None:
    curves = [(run.name, series(run.records, "validation"), RUN)]
    if dense is not None:
        curves.insert(0, (f"{dense.name} (dense)", series(dense.records, "validation"), DENSE))
    if not len(curves[-1][1]):
        return None

    def draw(axes: Any) -> None:
        for label, data, color in curves:
            if len(data):
                axes.plot(data.steps, data.values, color=color, marker="o", markersize=3.5, linewidth=1.4, label=label)
        axes.set_ylabel("held-out loss")
        axes.legend()

    return Panel("Held-out loss", "Fixed latents, noise and noise levels, under each run's own attention.", draw)


def _phases(run: Run) -> Panel | None:
    curves = grouped(run.records, per_phase)
    if not curves:
        return None

    def draw(axes: Any) -> None:
        for phase, data in curves.items():
            label = run.phases[phase] if phase < len(run.phases) else f"phase {phase + 1}"
            _line(axes, data, PHASES[phase % len(PHASES)], label, raw=False)
        axes.set_ylabel("training loss")
        axes.legend()

    return Panel(
        "Loss per phase of the schedule", "Every sample belongs to the phase that its noise level lies in.", draw
    )


def _sigmas(run: Run) -> Panel | None:
    curves = grouped(run.records, per_sigma)
    if not curves:
        return None

    def draw(axes: Any) -> None:
        from matplotlib import colormaps

        for key, data in curves.items():
            _line(axes, data, colormaps["viridis"](0.92 * key / (BUCKETS - 1)), bucket_name(key), raw=False)
        axes.set_ylabel("training loss")
        axes.legend(title="sigma", ncols=2, fontsize=7, title_fontsize=7)

    return Panel("Loss per noise level", f"{BUCKETS} equal parts of sigma.", draw)


def _simple(run: Run, key: str, title: str, label: str, said: str) -> Panel | None:
    data = series(run.records, key)
    if not len(data):
        return None

    def draw(axes: Any) -> None:
        _line(axes, data, RUN, None, raw=False, window=1)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)

    return Panel(title, said, draw)


def _norm(run: Run) -> Panel | None:
    data = series(run.records, "norm")
    if not len(data):
        return None

    def draw(axes: Any) -> None:
        _line(axes, data, RUN, None)
        axes.set_yscale("log")
        axes.set_ylabel("gradient norm")

    return Panel("Gradient norm", "Of all weights, before clipping.", draw)


def _blocks(run: Run) -> Panel | None:
    rows = [(r["step"] + 1, r["block_norms"]) for r in run.records if r.get("block_norms")]
    if len(rows) < 2 or len({len(norms) for _, norms in rows}) != 1:
        return None
    chosen = np.unique(np.linspace(0, len(rows) - 1, 200).round().astype(int))
    steps = [rows[i][0] for i in chosen]
    grid = np.log10(np.maximum(1e-12, np.array([rows[i][1] for i in chosen], dtype=float))).T

    def draw(axes: Any) -> None:
        blocks = len(grid)
        picture = axes.imshow(
            grid, aspect="auto", origin="lower", cmap="magma", extent=(steps[0], steps[-1], -0.5, blocks - 0.5),
            interpolation="nearest",
        )  # fmt: skip
        axes.set_ylabel("block")
        axes.set_yticks(range(0, blocks, max(1, blocks // 8)))
        axes.grid(False)
        axes.figure.colorbar(picture, ax=axes, label="log10 of the norm", shrink=0.9)

    return Panel("Gradient norm per block", "Blocks from the input (0) to the output.", draw)


def _routes(run: Run) -> Panel | None:
    rows = [(r["step"] + 1, r["routes"]) for r in run.records if r.get("routes")]
    if not rows or len({len(route) for _, route in rows}) != 1:
        return None
    chosen = np.unique(np.linspace(0, len(rows) - 1, 400).round().astype(int))
    steps, grid = [rows[i][0] for i in chosen], np.array([rows[i][1] for i in chosen], dtype=int).T
    used = np.unique(grid)

    def draw(axes: Any) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import BoundaryNorm, ListedColormap

        count = int(grid.max()) + 1
        colors = ListedColormap(colormaps["viridis"](np.linspace(0.05, 0.95, count)))
        edges = np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)) - 0.5
        picture = axes.pcolormesh(
            edges, np.linspace(0, 1, len(grid) + 1), grid, cmap=colors,
            norm=BoundaryNorm(np.arange(count + 1) - 0.5, count), rasterized=True,
        )  # fmt: skip
        axes.set_ylabel("sigma")
        axes.grid(False)
        axes.figure.colorbar(picture, ax=axes, label="LoRA", ticks=range(count), shrink=0.9)

    now = ", ".join(f"{(grid[:, -1] == index).mean():.0%} of sigma to LoRA {index}" for index in used)
    return Panel(
        "Routes of the timestep-aware LoRA", f"Which LoRA acts at which noise level. At step {steps[-1]} {now}.", draw
    )


def _speed(run: Run) -> Panel | None:
    tokens = series(run.records, lambda record: rates(record).get("tokens_per_second"))
    if not len(tokens):
        return None
    used = series(run.records, lambda record: rates(record, run.peak).get("mfu"))

    def draw(axes: Any) -> None:
        _line(axes, tokens, RUN, None)
        axes.set_ylabel("tokens per second")
        axes.set_ylim(bottom=0)
        if len(used):
            right = axes.twinx()
            _line(right, Series(used.steps, 100 * used.values), ACCENT, None, raw=False)
            right.set_ylabel("MFU, % of dense BF16 peak", color=ACCENT)
            right.set_ylim(bottom=0)
            right.grid(False)

    said = "Over all processes." + (
        " MFU counts the model's own operations, sparse attention as sparse." if len(used) else
        " No MFU: the device's peak is not known.")  # fmt: skip
    return Panel("Throughput", said, draw)


def _waiting(run: Run) -> Panel | None:
    data = series(run.records, lambda record: rates(record).get("data_wait"))
    if not len(data):
        return None

    def draw(axes: Any) -> None:
        _line(axes, Series(data.steps, 100 * data.values), RUN, None)
        axes.axhline(2, color=ACCENT, linewidth=0.9, linestyle="--")
        axes.set_ylabel("% of the step")
        top = 100 * float(np.quantile(data.values, 0.99))
        axes.set_ylim(0, max(4.0, 1.2 * top))

    return Panel("Waiting for data", f"{data.values.mean():.2%} of all step time; the line is 2 %.", draw)


def _memory(run: Run) -> Panel | None:
    data = series(run.records, "memory")
    if not len(data):
        return None

    def draw(axes: Any) -> None:
        _line(axes, Series(data.steps, data.values / 2**30), RUN, None, raw=False, window=1)
        axes.set_ylabel("GiB")
        axes.set_ylim(bottom=0)

    return Panel("Peak memory", "Of the main process.", draw)
