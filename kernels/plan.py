"""Plans: a schedule on a grid, compiled to what kernels consume.

``Plans.at(sigma, layer)`` gives the plan of one attention call. Plans are cached by what they mean, so that schedules
share them, and built outside compiled regions: a call only looks one up. Layers and bands of a head table differ in
``pattern_of_head`` alone: their layout and lists are one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

import numpy as np
import torch

from .block_lists import BlockLists, Layout
from .bytes_cache import BytesCache, Sized
from .grid import Tiling, TokenGrid, choose_tiling, run_tiling
from .head_table import HeadTable
from .patterns import Pattern, pattern_pairs
from .schedule import Phase, Schedule
from .selectors import SELECTORS, Selector, SelectorError, build_selector

FULL_RUN_SLOTS = 128
# About thirty windows for 75,600 tokens, at 9 MiB each, or the lists of one head table with twenty patterns. The host's
# memory management does not see them.
MAX_KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Everything about one attention call except q, k and v.

    ``lists`` are ready for a static selector; with an online ``selector`` they are None and made in every call, from
    q, k, v and what the selector has ``prepared`` for the tiling.
    """

    grid: TokenGrid
    tiling: Tiling
    attention: str
    granularity: str | None
    smooth_k: bool
    density: float | None
    layout: Layout
    lists: BlockLists | None
    selector: Selector | None = None
    prepared: Sized | None = None

    def lists_for(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> BlockLists:
        """Return the lists of a call with these q, k, v ``(B, S, H, D)``."""
        return self.lists if self.lists is not None else self.selector.select(q, k, v, self)


@dataclass(frozen=True, eq=False)
class _Tables:
    """What plans share on a device: the layout, and the lists of their patterns (None: made in every call) or what an
    online selector has ``prepared``. Granularities share the lists; ``layouts`` by cube differ in which tiles share a
    scale alone."""

    layout: Layout
    lists: BlockLists | None
    prepared: Sized | None = None
    layouts: dict[int, Layout] = field(default_factory=dict)
    plans: dict[Hashable, AttentionPlan] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of the tables on the device."""
        parts = [part for part in (self.layout, self.lists) if part is not None]
        tensors = [x for part in parts for f in fields(part) if isinstance(x := getattr(part, f.name), torch.Tensor)]
        prepared = 0 if self.prepared is None else self.prepared.bytes
        return sum(x.numel() * x.element_size() for x in tensors) + prepared


@dataclass(frozen=True)
class Plans:
    """The plans of a schedule on one grid: cheap to make, cached underneath.

    ``slots`` and ``tile`` are what the model was trained with (``tile`` may be replaced by a better fitting one, see
    ``choose_tiling``); ``smooth_k`` subtracts K's token mean before quantization. ``table`` is what a phase that says
    ``heads`` needs; ``first_head`` is the first of its heads here, where heads are spread over devices.
    """

    schedule: Schedule
    grid: TokenGrid
    heads: int
    slots: int = 64
    tile: tuple[int, int, int] | None = None
    smooth_k: bool = True
    table: HeadTable | None = None
    first_head: int = 0

    def at(
        self, sigma: float, layer: int = 0, device: torch.device | str = "cpu", branches: tuple[int, ...] = (0,)
    ) -> AttentionPlan | None:
        """Return the plan for ``sigma`` and ``layer``, or None where the host's own dense attention runs.

        ``branches`` says per sample whether it is of the prompt (0) or of the negative prompt (1); one number counts
        for all. It matters only to a head table that tells them apart. A layer that the table does not know is dense.
        """
        phase, band = self._phase(sigma, layer)
        if phase.attention == "dense":
            return None
        layer, device = _key_layer(phase, layer), torch.device(device)
        table = self.table if phase.uses_heads else None
        if table is None or table.branches == 1 or len(set(branches)) == 1:
            branches = branches[:1] if table is not None and table.branches > 1 else (0,)
        means = (phase.attention, phase.granularity, phase.window, phase.selector, self.smooth_k, table)
        key = (*means, self.heads, self.first_head, layer, band, branches)
        tables = _tables(self, phase, layer, band, device)
        if key not in tables.plans:
            tables.plans[key] = _build(self, phase, layer, band, branches, tables)
        return tables.plans[key]

    def layers(
        self, sigma: float, count: int, device: torch.device | str = "cpu", branches: tuple[int, ...] = (0,)
    ) -> list[AttentionPlan | None]:
        """Return the plans of layers 0 to ``count - 1`` for ``sigma``: what ``at`` gives for each, in one go."""
        _, phase = self.schedule.at(sigma)
        if phase.attention != "dense" and _selector(phase, self.table, 0).per_layer:
            return [self.at(sigma, layer, device, branches) for layer in range(count)]
        return [self.at(sigma, 0, device)] * count

    def tiling(self, sigma: float) -> Tiling:
        """Return the tiling that ``sigma`` uses: 3D tiles, or plain runs where every token sees every token."""
        return _tiling(self.grid, self.schedule.at(sigma)[1], self.slots, self.tile)

    def density(self, sigma: float, layer: int = 0) -> float | None:
        """Return the exact share of (query, key) pairs at ``sigma``: 1.0 when dense, None if decided online."""
        phase, band = self._phase(sigma, layer)
        if phase.is_full:
            return 1.0
        return _density(self, phase, _key_layer(phase, layer), band)

    def mean_density(self, sigma: float) -> float | None:
        """Return the mean of ``density`` over the layers that a head table knows; without one layers do not differ."""
        layers = self.table.layers if self.table is not None and self.schedule.at(sigma)[1].uses_heads else 1
        each = [self.density(sigma, layer) for layer in range(layers)]
        return None if None in each else float(np.mean(each))

    def band(self, sigma: float) -> int:
        """Return the band of the head table that ``sigma`` falls into, 0 where no table is used."""
        return self._phase(sigma, 0)[1]

    def describe(self, sigma: float) -> dict:
        """Return what ``sigma`` runs: phase, until, attention, granularity, window, tile, tiles, density."""
        index, phase = self.schedule.at(sigma)
        tiling = self.tiling(sigma)
        extents = phase.window or (None, None, None)
        return {
            "phase": index,
            "until": phase.until,
            "attention": phase.attention,
            "granularity": phase.granularity,
            "window": phase.selector or " ".join("all" if e is None else str(e) for e in extents),
            "tile": tiling.tile,
            "tiles": tiling.count,
            "density": self.mean_density(sigma),
        }

    def _phase(self, sigma: float, layer: int) -> tuple[Phase, int]:
        """Return what ``layer`` runs at ``sigma`` and the table's band: where a table has every head of a layer see
        everything, that is the phase ``all all all``, or dense where nothing is quantized."""
        _, phase = self.schedule.at(sigma)
        if not phase.uses_heads:
            return phase, 0
        table, band = self.table, 0 if self.table is None else self.table.band_at(sigma)
        if table is None:
            _selector(phase, None, 0)  # says what is missing
        elif layer >= table.layers or (phase.attention == "bf16" and table.all_full(band, layer)):
            phase, band = Phase(phase.until, "dense"), 0
        elif table.all_full(band, layer):
            phase, band = replace(phase, selector=None, window=(None, None, None)), 0
        return phase, band


@lru_cache(maxsize=64)
def plans_for(
    schedule: Schedule,
    grid: TokenGrid,
    heads: int,
    *,
    slots: int = 64,
    tile: tuple[int, int, int] | None = None,
    smooth_k: bool = True,
    table: HeadTable | None = None,
    first_head: int = 0,
) -> Plans:
    """Return the (cached) plans of ``schedule`` on ``grid``."""
    return Plans(schedule, grid, heads, slots, tile, smooth_k, table, first_head)


def step_densities(
    schedule: Schedule,
    grid: TokenGrid,
    sigmas: list[float],
    *,
    slots: int = 64,
    tile: tuple[int, int, int] | None = None,
    table: HeadTable | None = None,
) -> list[float | None]:
    """Return the exact density of every step of a run whose steps start at ``sigmas`` (without the final zero); None
    for a step whose selector decides online, or whose head table is not given."""
    plans = plans_for(schedule, grid, 1 if table is None else table.heads, slots=slots, tile=tile, table=table)
    unknown = [schedule.at(float(sigma))[1].uses_heads and table is None for sigma in sigmas]
    return [None if without else plans.mean_density(float(sigma)) for sigma, without in zip(sigmas, unknown)]


def attention_work(
    schedule: Schedule,
    grid: TokenGrid,
    sigmas: list[float],
    *,
    slots: int = 64,
    tile: tuple[int, int, int] | None = None,
    table: HeadTable | None = None,
) -> float | None:
    """Return the self-attention work of a run relative to a dense one (1.0): the mean density of its steps; None if
    the run has no step, or one whose density cannot be told beforehand."""
    densities = step_densities(schedule, grid, sigmas, slots=slots, tile=tile, table=table)
    return float(np.mean(densities)) if densities and None not in densities else None


def _tiling(grid: TokenGrid, phase: Phase, slots: int, tile: tuple[int, int, int] | None) -> Tiling:
    return run_tiling(grid, FULL_RUN_SLOTS) if phase.is_full else choose_tiling(grid, slots, tile)


@lru_cache(maxsize=256)
def _selector(phase: Phase, table: HeadTable | None, band: int) -> Selector:
    return build_selector(phase, table, band)


def _key_layer(phase: Phase, layer: int) -> int:
    """Return the layer that a cache is keyed on: layers share what does not depend on them."""
    if phase.attention == "dense" or phase.selector is None:
        return 0
    return layer if SELECTORS[phase.selector.split()[0]].per_layer else 0


def _patterns(plans: Plans, phase: Phase, layer: int, band: int) -> tuple[list[Pattern], np.ndarray]:
    """Return the patterns of a static selector and the pattern of each of these heads, ``(branches, heads)``."""
    tiling = _tiling(plans.grid, phase, plans.slots, plans.tile)
    selector = _selector(phase, plans.table if phase.uses_heads else None, band)
    if not phase.uses_heads:
        return selector.patterns(tiling, plans.heads, layer)
    patterns, chosen = selector.patterns(tiling, plans.table.heads, layer)
    heads = slice(plans.first_head, plans.first_head + plans.heads)
    if not 0 <= heads.start < heads.stop <= plans.table.heads:
        raise SelectorError(
            f"the head table is for {plans.table.heads} heads, this call has heads {heads.start} to {heads.stop - 1}; "
            "load a table of this model, or search one."
        )
    return patterns, chosen[:, heads]


@lru_cache(maxsize=4096)
def _density(plans: Plans, phase: Phase, layer: int, band: int) -> float | None:
    if _selector(phase, plans.table if phase.uses_heads else None, band).online:
        return None
    patterns, pattern_of_head = _patterns(plans, phase, layer, band)
    tiling = _tiling(plans.grid, phase, plans.slots, plans.tile)
    return _mean_density(patterns, pattern_of_head, tiling)


def _mean_density(patterns: list[Pattern], pattern_of_head: np.ndarray, tiling: Tiling) -> float:
    per_pattern = np.array([_pattern_density(pattern, tiling) for pattern in patterns])
    return float(per_pattern[pattern_of_head].mean())


@lru_cache(maxsize=1024)
def _pattern_density(pattern: Pattern, tiling: Tiling) -> float:
    return pattern_pairs(pattern, tiling) / float(tiling.grid.tokens) ** 2


_kept: BytesCache[_Tables] = BytesCache(MAX_KEPT_BYTES)


def _tables(plans: Plans, phase: Phase, layer: int, band: int, device: torch.device) -> _Tables:
    tiling = _tiling(plans.grid, phase, plans.slots, plans.tile)

    # What is first asked for while sampling must serve training too, whose autograd refuses inference tensors.
    @torch.inference_mode(False)
    def make() -> _Tables:
        lists = prepared = None
        selector = _selector(phase, plans.table if phase.uses_heads else None, band)
        if selector.online:
            prepared = selector.prepare(tiling, device) if hasattr(selector, "prepare") else None
        else:
            patterns = _patterns(plans, phase, layer, band)[0]
            lists = BlockLists.from_patterns(patterns, tiling, np.zeros((1, plans.heads)), device)
        layout = Layout.of(tiling, 1, device)
        return _Tables(layout, lists, prepared, {1: layout})

    # All layers and bands of a table have its patterns; of another selector each layer may have its own.
    patterns = plans.table if phase.uses_heads else (phase.window, phase.selector, layer)
    return _kept.get((tiling, patterns, device), make)


@torch.inference_mode(False)
def _build(
    plans: Plans, phase: Phase, layer: int, band: int, branches: tuple[int, ...], tables: _Tables
) -> AttentionPlan:
    selector = _selector(phase, plans.table if phase.uses_heads else None, band)
    tiling = _tiling(plans.grid, phase, plans.slots, plans.tile)
    cube = int(phase.granularity[1:]) if (phase.granularity or "").startswith("x") else 1
    if cube not in tables.layouts:
        tables.layouts[cube] = tables.layout.with_cubes(tiling, cube)
    lists, density = tables.lists, 1.0 if phase.is_full else _density(plans, phase, layer, band)
    if lists is not None:
        patterns, chosen = _patterns(plans, phase, layer, band)
        if phase.uses_heads:
            chosen = chosen[[min(branch, len(chosen) - 1) for branch in branches]]
            density = _mean_density(patterns, chosen, tiling)
        device = lists.ids.device
        on_device = torch.from_numpy(np.ascontiguousarray(chosen, dtype=np.int32)).to(device)
        lists = replace(lists, pattern_of_head=on_device)
    return AttentionPlan(
        grid=plans.grid,
        tiling=tiling,
        attention=phase.attention,
        granularity=phase.granularity,
        smooth_k=plans.smooth_k,
        density=density,
        layout=tables.layouts[cube],
        lists=lists,
        selector=selector if selector.online else None,
        prepared=tables.prepared,
    )


def clear_plans() -> None:
    """Drop every cached plan and its device memory."""
    _kept.clear()
    for cached in (_density, _pattern_density, _selector, plans_for):
        cached.cache_clear()
