"""Selectors fill a plan: they decide which key tiles every query tile sees, and nothing else.

A static selector answers before the run (``patterns``: per head, from the phase and the layer) and its lists are
cached. An online selector answers in every call (``select``: from q, k and v, on the device, fixed shapes, no
synchronization). A new sparse method is one new file here and one word in ``SELECTORS``; schedules, plans and kernels
stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..grid import Tiling
    from ..head_table import HeadTable
    from ..patterns import Pattern
    from ..plan import AttentionPlan, BlockLists
    from ..schedule import Phase


@dataclass(frozen=True)
class Argument:
    """A number behind a selector's word: its bounds (``above``: the lower one is excluded) and an example.

    ``density``: it is about the share of attention that will be computed, for pictures before a run.
    """

    name: str
    low: float
    high: float
    example: str
    required: bool = True
    above: bool = False
    density: bool = False


@dataclass(frozen=True)
class Word:
    """A word of a schedule's pattern column: the module in this package that builds the selector, what it takes, and
    one line that says what it does. ``per_layer``: layers differ. ``online``: it decides in every call."""

    module: str
    arguments: tuple[Argument, ...] = ()
    says: str = ""
    online: bool = True
    per_layer: bool = False


# Windows are written as three extents and need no word.
_GATE = Argument("self-similarity gate", -1.0, 1.0, "0.6", required=False)
SELECTORS: dict[str, Word] = {
    "heads": Word(
        "heads", says="per head, from a head table found offline (Sparse-vDiT)", online=False, per_layer=True
    ),
    "sta": Word("sta", says="one of STA's windows per head, found by sampled rows"),
    "svg": Word(
        "svg", (Argument("density", 0.0, 1.0, "0.3", above=True, density=True),), "spatial or temporal per head (SVG)"
    ),
    "topk": Word(
        "top_tiles",
        (Argument("share of key tiles", 0.0, 1.0, "0.15", above=True, density=True), _GATE),
        "the best key tiles by means",
    ),
    "cdf": Word(
        "top_tiles",
        (Argument("attention mass", 0.0, 1.0, "0.9", above=True), _GATE),
        "key tiles up to a mass (SpargeAttn)",
    ),
}


class SelectorError(ValueError):
    """A selector that lacks what it needs; the message is one sentence."""


class Selector(Protocol):
    """What every selector offers; ``online`` says which of the two questions it answers."""

    online: bool
    per_layer: bool

    def patterns(self, tiling: Tiling, heads: int, layer: int) -> tuple[list[Pattern], np.ndarray]:
        """Static: return distinct patterns and ``pattern_of_head`` int32 ``(1 or B, heads)``."""
        ...

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> BlockLists:
        """Online: return lists for this call, from q, k, v ``(B, S, H, D)``; traceable, no host synchronization."""
        ...

    # Online, and only where there is something that no call changes:
    #   prepare(tiling, device) -> anything with ``bytes``; it is kept with the tiling's tables, and a call finds it as
    #   ``plan.prepared``.


def build_selector(phase: Phase, table: HeadTable | None = None, band: int = 0) -> Selector:
    """Return the selector that fills ``phase``; ``table`` and its ``band`` are for the word ``heads``.

    Raises SelectorError where the phase says ``heads`` and there is no table.
    """
    if phase.selector is None:
        from .window import WindowSelector

        return WindowSelector(phase)
    module = import_module(f".{SELECTORS[phase.selector.split()[0]].module}", __name__)
    if phase.uses_heads:
        return module.build(phase, table, band)
    return module.build(phase)
