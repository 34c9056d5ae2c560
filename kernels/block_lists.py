"""What kernels read of a plan, as tensors on a device: which tiles see which, and which tokens a tile holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .grid import Tiling
from .patterns import Pattern, block_lists, pattern_rows, stack_rows

_LIST_TENSORS = ("ids", "count", "pattern_of_head", "key_ids", "key_count")


@dataclass(frozen=True, eq=False)
class BlockLists:
    """Which key tiles every query tile sees, on the device.

    ``ids`` int32 ``(P, nQ, longest)`` ascending, ``count`` int32 ``(P, nQ)`` (0 is legal: the output is zero),
    ``pattern_of_head`` int32 ``(1 or B, H)``; ``key_ids``, ``key_count`` are the transposed lists (which query tiles
    see a key tile), for the backward. Lists that an online selector made say their mean ``density`` over samples and
    heads, a float32 scalar on the device; with ``forward_only`` it left the transposed lists out.
    """

    ids: torch.Tensor
    count: torch.Tensor
    pattern_of_head: torch.Tensor
    key_ids: torch.Tensor
    key_count: torch.Tensor
    density: torch.Tensor | None = None
    forward_only: bool = False

    @staticmethod
    def from_masks(masks: np.ndarray, pattern_of_head: np.ndarray, device: torch.device | str) -> BlockLists:
        """Return the lists of boolean ``masks (P, nQ, nK)`` with ``pattern_of_head (1 or B, H)``."""
        return BlockLists._on(device, *block_lists(masks), pattern_of_head, *block_lists(masks.transpose(0, 2, 1)))

    @staticmethod
    def from_patterns(
        patterns: list[Pattern], tiling: Tiling, pattern_of_head: np.ndarray, device: torch.device | str
    ) -> BlockLists:
        """Return the lists of ``patterns`` on ``tiling`` with ``pattern_of_head (1 or B, H)``."""
        queries, keys = ([pattern_rows(p, tiling, transposed) for p in patterns] for transposed in (False, True))
        return BlockLists._on(device, *stack_rows(queries), pattern_of_head, *stack_rows(keys))

    @staticmethod
    def _on(device: torch.device | str, *arrays: np.ndarray) -> BlockLists:
        return BlockLists(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.int32)).to(device) for a in arrays))

    def problem(self, tiles: int, batch: int, heads: int) -> str | None:
        """Return what is wrong with the form of these lists for a call on ``tiles``, ``batch`` and ``heads``, or None.

        Values are not looked at: that would wait for the device (see ``Spec.check``).
        """
        tensors = {name: getattr(self, name) for name in _LIST_TENSORS}
        for name, x in tensors.items():
            if x.dtype != torch.int32 or x.device != self.ids.device:
                return f"{name} is {x.dtype} on {x.device}, the lists must be torch.int32 on {self.ids.device}"
        patterns = self.ids.shape[0]
        for name in ("ids", "key_ids"):
            shape, counts = tuple(tensors[name].shape), tensors["count" if name == "ids" else "key_count"]
            if len(shape) != 3 or shape[1] != tiles or tuple(counts.shape) != (patterns, tiles) or shape[0] != patterns:
                return f"{name} has shape {shape} and its counts {tuple(counts.shape)}, there are {tiles} tiles"
            if patterns < 1 or shape[2] < 1:
                return f"{name} has shape {shape}, it needs a pattern and a place at least (counts may be 0)"
        per = tuple(self.pattern_of_head.shape)
        if per not in ((1, heads), (batch, heads)):
            return f"the patterns are for {per[0]} samples of {per[-1]} heads, q has {batch} of {heads}"
        return None


@dataclass(frozen=True, eq=False)
class Layout:
    """A tiling's device tensors: ``index`` int64 ``(tiles, width)`` (token of each slot, -1 dead, live rows first),
    ``live`` int32 ``(tiles,)``, ``cube`` int64 ``(tiles,)`` (tiles that share a scale), ``cubes`` their number;
    ``uniform`` the live rows of every tile but the last (0 where they differ) and ``last`` those of the last."""

    index: torch.Tensor
    live: torch.Tensor
    cube: torch.Tensor
    cubes: int
    uniform: int
    last: int

    @staticmethod
    def of(tiling: Tiling, cube_size: int, device: torch.device | str) -> Layout:
        """Return the layout of ``tiling`` with scales shared by cubes of ``cube_size`` tiles along every axis."""
        cubes = tiling.cubes(cube_size)
        but_last = tiling.live[:-1] if tiling.count > 1 else tiling.live
        return Layout(
            index=torch.from_numpy(tiling.index).to(device),
            live=torch.from_numpy(tiling.live.astype(np.int32)).to(device),
            cube=torch.from_numpy(cubes).to(device),
            cubes=int(cubes.max()) + 1,
            uniform=int(but_last[0]) if (but_last == but_last[0]).all() else 0,
            last=int(tiling.live[-1]),
        )

    def with_cubes(self, tiling: Tiling, cube_size: int) -> Layout:
        """Return this layout, of ``tiling``, with scales shared by other cubes; the other tensors are the same ones."""
        cubes = tiling.cubes(cube_size)
        return replace(self, cube=torch.from_numpy(cubes).to(self.cube.device), cubes=int(cubes.max()) + 1)
