"""Figures of a result file: who was fastest, speed-ups, efficiency. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

# Floating-point operations of forward and backward over those of the forward, of live pairs: two products of the
# forward, five of the backward. What a kernel computes twice is not counted.
WITH_GRADIENT = 3.5
# Quartiles of fewer times say nothing.
FEWEST_FOR_SPREAD = 3


def fastest(result: dict, family: str) -> tuple[str, dict] | None:
    """Return name and entry of the correct contestant of a family with the most computed pairs per second (the highest
    E), None if there is none. Tiles of different sizes meet a density differently, so times alone do not compare."""
    entries = [
        (name, entry)
        for name, entry in result.get("contestants", {}).items()
        if entry.get("family") == family and entry.get("status") == "ok" and entry.get("ms")
    ]
    return min(entries, key=lambda pair: pair[1]["ms"] / (pair[1].get("density") or 1.0)) if entries else None


def baselines(data: dict) -> list[str]:
    """Return the names of the dense BF16 attentions that a result holds times of, in alphabetical order."""
    return sorted(
        {
            name
            for result in cells_of(data, "attention").values()
            for name, entry in result.get("contestants", {}).items()
            if entry.get("family") == "dense" and entry.get("status") == "ok" and entry.get("ms")
        }
    )


@dataclass(frozen=True)
class Comparison:
    """Ours against the fastest dense BF16 attention of the same process."""

    cell: str
    ours: str
    dense: str
    ours_ms: float
    dense_ms: float
    density: float
    spread: float

    @property
    def speedup(self) -> float:
        """Dense time over our time."""
        return self.dense_ms / self.ours_ms

    @property
    def efficiency(self) -> float:
        """E: the speed-up times the token density; 1 wastes nothing."""
        return self.speedup * self.density


def compare(name: str, result: dict, only: str | None = None) -> Comparison | None:
    """Return the comparison of a cell, for one of ours by name or the fastest; None where either side is missing."""
    dense = fastest(result, "dense")
    ours = fastest(result, "ours") if only is None else (only, result.get("contestants", {}).get(only, {}))
    if not dense or not ours or ours[1].get("status") != "ok" or not ours[1].get("ms"):
        return None
    entry = ours[1]
    spread = max(entry.get("spread", 0.0), dense[1].get("spread", 0.0))
    return Comparison(name, ours[0], dense[0], entry["ms"], dense[1]["ms"], entry["density"], spread)


def cells_of(data: dict, kind: str) -> dict[str, dict]:
    """Return the cells of a kind that were measured, by name, in the order of the file."""
    return {
        name: result
        for name, result in data["cells"].items()
        if result.get("cell", {}).get("kind") == kind and result.get("status") == "ok"
    }


def find(
    data: dict,
    *,
    density: int,
    direction: str = "forward",
    heads: int = 40,
    grid: tuple[int, int, int] = (21, 45, 80),
) -> dict | None:
    """Return the measured attention cell of a shape at a target density, batch 1; None if there is none."""
    for result in cells_of(data, "attention").values():
        cell = result["cell"]
        if (
            cell["density"] == density
            and cell["direction"] == direction
            and cell["heads"] == heads
            and tuple(cell["grid"]) == tuple(grid)
            and cell["batch"] == 1
        ):
            return result
    return None
