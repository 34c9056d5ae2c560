"""What each head did in a run: by a head table's choice per layer and head, or by an online selector's per layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..kernels.grid import Tiling, choose_tiling
from ..kernels.head_table import HeadTable
from ..kernels.pattern_text import family, format_pattern
from .record import Run, Step
from .settings import Settings

# A stripe names its tiles, which may be many.
_LETTERS = 60


@dataclass(frozen=True)
class PatternUse:
    """How many heads used a pattern (in the mean over steps where they change), and its density there."""

    words: str
    family: str
    heads: float
    density: float


@dataclass(frozen=True)
class HeadUse:
    """What heads ran by a table: ``density`` float64 ``(layers, heads)``, the mean over ``steps`` steps, and what
    patterns that was, the most used first; ``dense`` are the heads whose layer stayed dense, in the mean over steps."""

    density: np.ndarray
    steps: int
    patterns: list[PatternUse]
    dense: float


@lru_cache(maxsize=16)
def pattern_densities(table: HeadTable, tiling: Tiling) -> np.ndarray:
    """Return ``table.pattern_densities(tiling)``, which takes milliseconds on a large video; not to be written to."""
    found = table.pattern_densities(tiling)
    found.setflags(write=False)
    return found


def head_densities(table: HeadTable, tiling: Tiling, band: int, branches: Iterable[int]) -> np.ndarray:
    """Return the exact densities of ``table`` in one band, float64 ``(layers, heads)``: the mean over ``branches``."""
    return pattern_densities(table, tiling)[table.bands[band].chosen[list(branches)]].mean(0)


def run_head_use(settings: Settings, run: Run) -> HeadUse | None:
    """Return what heads ran by the head table in ``run``, or None if none did."""
    table, steps = settings.table, [step.heads for step in run.steps.values() if step.heads]
    if not steps or table is None:
        return None
    tiles = {"slots": settings.tiles["slots"], "tile": settings.tiles["tile"]}
    shape = (table.layers, table.heads)
    density, used = np.zeros(shape), np.zeros(len(table.patterns))
    work, dense = np.zeros(len(table.patterns)), 0.0
    for call, weight in ((call, n / each.total() / len(steps)) for each in steps for call, n in each.items()):
        tiling = choose_tiling(call.grid, **tiles)
        stayed = sorted(call.dense)
        each = head_densities(table, tiling, call.band, call.branches)
        each[stayed] = 1.0
        density += weight * each
        chosen = np.delete(table.bands[call.band].chosen[list(call.branches)], stayed, axis=1)
        counted = weight * np.bincount(chosen.reshape(-1), minlength=len(used)) / len(call.branches)
        used += counted
        work += counted * pattern_densities(table, tiling)
        dense += weight * len(stayed) * table.heads
    return HeadUse(density, len(steps), _patterns(table, used, work), dense)


def table_use(table: HeadTable) -> HeadUse:
    """Return what ``table`` says on its own grid: the mean over its bands and branches."""
    tiling = choose_tiling(table.grid, table.slots, table.tile)
    branches, bands = range(table.branches), range(len(table.bands))
    density = np.mean([head_densities(table, tiling, band, branches) for band in bands], axis=0)
    chosen = np.stack([band.chosen for band in table.bands])
    used = np.bincount(chosen.reshape(-1), minlength=len(table.patterns)) / (len(bands) * len(branches))
    return HeadUse(density, len(bands), _patterns(table, used, used * pattern_densities(table, tiling)), 0.0)


def _patterns(table: HeadTable, used: np.ndarray, work: np.ndarray) -> list[PatternUse]:
    found: dict[str, PatternUse] = {}
    for pattern, heads, done in zip(table.patterns, used.tolist(), work.tolist()):
        if heads:
            words = format_pattern(pattern)
            before = found.get(words, PatternUse(words, family(pattern), 0.0, 0.0))
            total = before.heads + heads
            density = (before.density * before.heads + done) / total
            found[words] = PatternUse(words, before.family, total, density)
    return sorted(found.values(), key=lambda use: -use.heads)


def pattern_lines(use: HeadUse, most: int | None = None) -> list[str]:
    """Return one line per pattern: how many heads used it, and its density; beyond ``most`` lines one for the rest."""
    total = use.density.size
    shown = use.patterns if most is None or len(use.patterns) <= most else use.patterns[: most - 1]
    lines = [
        f"{_heads(each.heads, total)}: {_short(each.words)}{_family(each)}, density {each.density:.1%}"
        for each in shown
    ]
    if rest := use.patterns[len(shown) :]:
        lines.append(f"{_heads(sum(each.heads for each in rest), total)}: {len(rest)} more patterns")
    if use.dense:
        lines.append(f"{_heads(use.dense, total)}: dense, with their whole layer")
    return lines


def use_line(use: HeadUse) -> str:
    """Return what heads did in one sentence."""
    layers, heads = use.density.shape
    steps = f"{use.steps} step{'s' * (use.steps != 1)}"
    mean = f"mean density {use.density.mean():.1%} in the {steps} that used it"
    return f"head table: {layers} layers of {heads} heads, {mean}"


def density_lines(density: np.ndarray) -> list[str]:
    """Return densities ``(layers, heads)`` as a table of percent, a line per layer."""
    width = len(str(len(density) - 1))
    return [f"layer {i:>{width}}: " + " ".join(f"{100 * d:3.0f}" for d in row) for i, row in enumerate(density)]


def layer_densities(steps: list[Step]) -> np.ndarray | None:
    """Return what online selectors chose, float64 ``(blocks, steps)``, NaN where a block chose nothing; None if no
    step has any."""
    blocks = max((max(step.layers) + 1 for step in steps if step.layers), default=0)
    if not blocks:
        return None
    found = np.full((blocks, len(steps)), np.nan)
    for place, step in enumerate(steps):
        for block, (total, calls) in step.layers.items():
            found[block, place] = total / calls
    return found


def online_line(steps: list[Step]) -> str | None:
    """Return in one sentence what online selectors chose, or None where none ran."""
    found = layer_densities(steps)
    if found is None:
        return None
    words = " and ".join(dict.fromkeys(step.window for step in steps if step.layers))
    known = ~np.isnan(found)
    each = np.nansum(found, 1)[known.any(1)] / known.sum(1)[known.any(1)]
    blocks = np.flatnonzero(known.any(1))
    low, high = int(each.argmin()), int(each.argmax())
    return (
        f"{words} chose density {found[known].mean():.1%} in the mean: from {each[low]:.1%} in block {blocks[low]} to "
        f"{each[high]:.1%} in block {blocks[high]}"
    )


def _heads(number: float, total: int) -> str:
    words = f"{number:.0f}" if abs(number - round(number)) < 1e-6 else f"{number:.1f}"
    return f"{words} of {total} heads ({number / total:.1%})"


def _short(words: str) -> str:
    return words if len(words) <= _LETTERS else f"{words[: _LETTERS - 4]} ..."


def _family(use: PatternUse) -> str:
    return "" if use.words.startswith(use.family) else f" ({use.family})"
