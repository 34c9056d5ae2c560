"""Selectors fill a plan: they decide which key tiles every query tile sees, and nothing else.

A static selector answers before the run (``patterns``: per head, from the phase and the layer) and its lists are
cached. An online selector answers in every call (``select``: from q and k, on the device, fixed shapes, no
synchronization). A new sparse method is one new file here and one word in ``SELECTORS``; schedules, plans and kernels
stay as they are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..grid import Tiling
    from ..patterns import Pattern
    from ..plan import AttentionPlan, BlockLists
    from ..schedule import Phase

# Word in a schedule's pattern column -> module in this package that builds the selector. Windows are written as three
# extents and need no word.
SELECTORS: dict[str, str] = {}


class Selector(Protocol):
    """What every selector offers; ``online`` says which of the two questions it answers."""

    online: bool
    per_layer: bool

    def patterns(self, tiling: Tiling, heads: int, layer: int) -> tuple[list[Pattern], np.ndarray]:
        """Static: return distinct patterns and ``pattern_of_head`` int32 ``(1 or B, heads)``."""
        ...

    def select(self, q: torch.Tensor, k: torch.Tensor, plan: AttentionPlan) -> BlockLists:
        """Online: return lists for this call, from q, k ``(B, S, H, D)``; traceable, no host synchronization."""
        ...


def build_selector(phase: Phase) -> Selector:
    """Return the selector that fills ``phase``."""
    if phase.selector is None:
        from .window import WindowSelector

        return WindowSelector(phase)
    module = import_module(f".{SELECTORS[phase.selector.split()[0]]}", __name__)
    return module.build(phase)
