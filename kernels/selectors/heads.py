"""Patterns per head from a head table that was found offline (Sparse-vDiT, arXiv 2506.03065, section 4.2)."""

from __future__ import annotations

import numpy as np

from ..grid import Tiling
from ..head_table import HeadTable
from ..patterns import Pattern
from ..schedule import Phase
from . import SelectorError


class HeadTableSelector:
    """Chooses each head's pattern by the table's entry for the layer, in one band of sigma; static.

    The patterns are all of the table's, in its order, so that layers and bands share their lists.
    """

    online = False
    per_layer = True

    def __init__(self, table: HeadTable, band: int) -> None:
        self.table, self.band = table, band

    def patterns(self, tiling: Tiling, heads: int, layer: int) -> tuple[list[Pattern], np.ndarray]:
        """Return the table's patterns and ``pattern_of_head`` int32 ``(branches, the table's heads)``."""
        del tiling, heads  # where heads are spread over devices, the plan takes its own of the table's
        chosen = self.table.bands[self.band].chosen[:, layer]
        return list(self.table.patterns), chosen.astype(np.int32)


def build(phase: Phase, table: HeadTable | None, band: int) -> HeadTableSelector:
    """Return the selector of ``table``; raises SelectorError where there is none."""
    del phase
    if table is None:
        raise SelectorError(
            "the schedule says 'heads', but there is no head table; connect Load Head Patterns, or load a model file "
            "that carries one."
        )
    return HeadTableSelector(table, band)
