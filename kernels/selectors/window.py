"""The window selector: one 3D window per phase for all heads and layers (FPSAttention section 3.1, STA)."""

from __future__ import annotations

import numpy as np

from ..grid import Tiling
from ..patterns import Full, Pattern, Window
from ..schedule import Phase


class WindowSelector:
    """Chooses the phase's window for every head; static."""

    online = False
    per_layer = False

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def patterns(self, tiling: Tiling, heads: int, layer: int) -> tuple[list[Pattern], np.ndarray]:
        """Return the patterns and ``pattern_of_head`` int32 ``(1, heads)``."""
        del tiling, layer
        pattern = Full() if self.phase.is_full else Window(*self.phase.window)
        return [pattern], np.zeros((1, heads), dtype=np.int32)
