"""Selectors fill a plan: they decide which key tiles every query tile sees, and nothing else.

A static selector answers before the run (``patterns``: per head, from the phase and the layer) and its lists are
cached. An online selector answers in every call (``select``: from q and k, on the device, fixed shapes, no
synchronization). A new sparse method is one new file here and one word in ``SELECTORS``; schedules, plans and kernels
stay as they are.
"""

from __future__ import annotations

# Word in a schedule's pattern column -> module in this package that builds the selector. Windows are written as three
# extents and need no word.
SELECTORS: dict[str, str] = {}
