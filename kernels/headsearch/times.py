"""The time of a pattern from a calibration: measured here, measured on a near grid, or read off a curve.

All times are milliseconds of one head, without what a call costs beyond its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..attention import BackendError
from ..calibration import Calibration, entry_key, interpolate, is_near
from ..cards import card_name
from ..grid import Tiling
from ..measure_patterns import FULL_LAYER, Call, pattern_key
from ..pattern_text import PatternError, family, parse_pattern
from ..patterns import Full, Pattern, Skip, pattern_pairs

# Two densities that differ by less are of the same lists.
SAME = 1e-6


@dataclass(frozen=True)
class PatternTime:
    """Milliseconds of one head, and in words where they come from."""

    ms: float
    source: str


@dataclass(frozen=True)
class _Measured:
    """A calibration's entry of a pattern: its ``ms`` per head as they would be on the grid that is asked about."""

    name: str
    density: float
    ms: float
    entry: dict


@dataclass
class PatternTimes:
    """What ``calibration`` tells about patterns on ``tiling`` for ``call``; see ``of``."""

    calibration: Calibration
    tiling: Tiling
    call: Call
    fixed_ms: float = 0.0
    full_layer_ms: float | None = None
    here: dict[str, _Measured] = field(default_factory=dict)
    near: list[_Measured] = field(default_factory=list)
    fresh: set[tuple] = field(default_factory=set)

    @staticmethod
    def of(calibration: Calibration, tiling: Tiling, call: Call, fresh: Sequence[dict] = ()) -> PatternTimes:
        """Return the times; the entries ``fresh`` were measured just now. Empty where no backend runs ``call``."""
        times = PatternTimes(calibration, tiling, call, fresh={entry_key(entry) for entry in fresh})
        try:
            kind = call.kind()
        except BackendError:
            return times
        names = ("card", "backend", "attention", "granularity", "slots", "head_dim")
        wanted = (card_name(call.device), *kind, tiling.slots, call.head_dim)
        tokens = tiling.grid.tokens
        entries = [
            e for e in calibration.entries
            if tuple(e[n] for n in names) == wanted and e["pattern"] != "window" and is_near(e["tokens"], tokens)
        ]  # fmt: skip
        groups: dict[tuple, list[dict]] = {}
        for entry in entries:
            groups.setdefault((entry["tokens"], tuple(entry["tile"])), []).append(entry)
        own = (tokens, tiling.tile)
        # Launching costs the same on any grid: the nearest one that tells it.
        for size in sorted(groups, key=lambda size: (size != own, abs(np.log(size[0] / tokens)))):
            fixed = _fixed(groups[size])
            times.fixed_ms = times.fixed_ms or fixed
            times._take(groups[size], fixed, size == own)
        times._take_full_layer(groups.get(own, []))
        return times

    def _take(self, entries: list[dict], fixed: float, own: bool) -> None:
        tokens = self.tiling.grid.tokens
        # The nearest number of heads answers, and of equals the newest.
        ranked = sorted(entries, key=lambda e: (-abs(np.log(e["heads"] / self.call.heads)), e["measured"]))
        for name, entry in {e["pattern"]: e for e in ranked}.items():
            if name == FULL_LAYER:
                continue
            density, ms = entry["points"][0]
            # Without a pair to compute, what is left is quantizing and writing tokens.
            ratio = tokens / entry["tokens"]
            scale = 1.0 if own else ratio**2 if density else ratio
            found = _Measured(name, density, max(0.0, ms - fixed) / entry["heads"] * scale, entry)
            if own:
                self.here[name] = found
            else:
                self.near.append(found)

    def _take_full_layer(self, entries: list[dict]) -> None:
        call = self.call
        if call.attention == "fp8":
            found = [e for e in entries if e["pattern"] == FULL_LAYER]
            if found:
                best = min(found, key=lambda e: abs(np.log(e["heads"] / call.heads)))
                self.full_layer_ms = best["points"][0][1] / best["heads"]
            return
        # Without FP8 such a layer runs the host's own attention.
        dense = self.calibration.milliseconds(
            card_name(call.device), self.tiling.grid.tokens, call.heads, call.head_dim, "dense", None, 1.0
        )
        self.full_layer_ms = None if dense is None else dense.ms / call.heads

    def missing(self, patterns: Sequence[Pattern]) -> list[Pattern]:
        """Return what was not measured on this grid: of ``patterns``, and of Full and Skip, which all else is told
        from."""
        return [p for p in dict.fromkeys((Full(), Skip(), *patterns)) if self._here(p, None) is None]

    def of_pattern(self, pattern: Pattern, density: float) -> PatternTime | None:
        """Return the time of ``pattern``, whose exact density here is ``density``; None where not even Full's is
        known."""
        if found := self._here(pattern, density):
            now = entry_key(found.entry) in self.fresh
            return PatternTime(found.ms, "measured now" if now else "measured on this grid before")
        name = pattern_key(pattern)
        for each in self.near:
            if each.name == name:
                # The same words come to another density there.
                scale = density / each.density if each.density and density else 1.0
                return PatternTime(each.ms * scale, f"measured on {each.entry['tokens']:,} tokens, by pairs")
        if found := self._family_curve(family(pattern), density):
            return found
        if (ms := self._window_curve(density)) is not None:
            return PatternTime(ms, "curve of windows over density")
        if isinstance(pattern, Full):
            return None
        full = self.of_pattern(Full(), 1.0)
        return full and PatternTime(full.ms * density, "density times Full's time")

    def _here(self, pattern: Pattern, density: float | None) -> _Measured | None:
        found = self.here.get(pattern_key(pattern))
        if found is None:
            return None
        if density is None:
            density = pattern_pairs(pattern, self.tiling) / float(self.tiling.grid.tokens) ** 2
        # Other grids may have as many tokens: upright and lying videos.
        return found if abs(found.density - density) < SAME else None

    def _family_curve(self, name: str, density: float) -> PatternTime | None:
        everyone = [*self.here.values(), *self.near]
        points = [(e.density, e.ms) for e in everyone if _family(e.name) == name]
        if not points or name in ("full", "skip"):
            return None
        ends = [self.here[word] for word in ("skip", "full") if word in self.here]
        groups: list[list[tuple[float, float]]] = []
        for point in sorted([*points, *((e.density, e.ms) for e in ends)]):
            if groups and point[0] - groups[-1][0][0] < SAME:
                groups[-1].append(point)
            else:
                groups.append([point])
        curve = [(group[0][0], float(np.mean([ms for _, ms in group]))) for group in groups]
        return PatternTime(interpolate(curve, density), f"curve of {name} patterns over density")

    def _window_curve(self, density: float) -> float | None:
        call = self.call
        try:
            backend, attention, granularity = call.kind()
        except BackendError:
            return None
        found = self.calibration.milliseconds(
            card_name(call.device), self.tiling.grid.tokens, call.heads, call.head_dim, attention, granularity, density,
            backend=backend, slots=self.tiling.slots, tile=self.tiling.tile,
        )  # fmt: skip
        return None if found is None else max(0.0, found.ms - self.fixed_ms) / call.heads


def _fixed(entries: list[dict]) -> float:
    """Return what a call costs beyond its heads: where the line through the times of Skip meets zero heads."""
    points = sorted({e["heads"]: e["points"][0][1] for e in entries if e["pattern"] == "skip"}.items())
    if len(points) < 2:
        return 0.0
    (few, low), (many, high) = points[0], points[-1]
    each = max(0.0, (high - low) / (many - few))
    return max(0.0, low - few * each)


def _family(name: str) -> str | None:
    try:
        return family(parse_pattern(name))
    except PatternError:
        return None
