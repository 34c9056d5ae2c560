"""What one attention call needs beside q, k and v: the layout, the lists and the numerics."""

from __future__ import annotations

from dataclasses import dataclass

import torch

HEAD_DIMS = (64, 128)


@dataclass(frozen=True)
class Spec:
    """The flat form of an ``AttentionPlan`` that crosses the op's border; all tensors on the device of q.

    ``index (tiles, width)`` token of every slot, live rows first, -1 where dead; ``live (tiles,)``; ``cube (tiles,)``
    the scale group of a tile, ``cubes`` their number; ``ids (P, tiles, longest)``, ``count (P, tiles)``: the key tiles
    that a query tile sees, ascending unless ``uniform`` is 0 or ``last``; ``key_ids``, ``key_count``: the query tiles
    that see a key tile; ``pattern_of_head (1 or B, H)``. ``uniform``: the live rows of every tile but the last, 0 where
    they differ; ``last``: those of the last. ``granularity``: 'token', 'x1' ... 'x8', None where nothing is quantized.
    ``format``: 'none'; 'e4m3' (Q, K, V and P rounded to FP8); 'int8' (Q and K rounded to 8-bit integers, P and V left
    in 16 bits).
    """

    index: torch.Tensor
    live: torch.Tensor
    cube: torch.Tensor
    ids: torch.Tensor
    count: torch.Tensor
    pattern_of_head: torch.Tensor
    key_ids: torch.Tensor
    key_count: torch.Tensor
    cubes: int
    uniform: int
    last: int
    granularity: str | None
    smooth_k: bool
    format: str

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the op's order."""
        return (
            self.index, self.live, self.cube, self.ids, self.count, self.pattern_of_head, self.key_ids, self.key_count,
        )  # fmt: skip

    @property
    def scalars(self) -> tuple:
        """The rest, in the op's order."""
        return (self.cubes, self.uniform, self.last, self.granularity or "", self.smooth_k, self.format)

    @staticmethod
    def make(*values) -> Spec:
        """Return the spec of ``*tensors, *scalars``."""
        *head, granularity, smooth_k, form = values
        return Spec(*head, granularity or None, smooth_k, form)

    def check(self) -> None:
        """Raise ValueError, one sentence, if a list names what is not there. On a CPU only: elsewhere a look would wait
        for the device, and the kernels move every index into range."""
        if self.ids.device.type != "cpu":
            return
        tiles, patterns = self.index.shape[0], self.ids.shape[0]
        limits = {
            "pattern_of_head": patterns,
            "count": self.ids.shape[2] + 1,
            "key_count": self.key_ids.shape[2] + 1,
            "ids": tiles,
            "key_ids": tiles,
        }
        for name, limit in limits.items():
            values = getattr(self, name)
            if values.dim() == 3:
                # What lies behind a list's count is never read.
                counts = self.count if name == "ids" else self.key_count
                values = values[torch.arange(values.shape[2]) < counts[..., None]]
            if values.numel() == 0:
                continue
            low, high = (int(x) for x in torch.aminmax(values))
            if low < 0 or high >= limit:
                found = f"{name} holds {low} to {high}, allowed are 0 to {limit - 1}"
                raise ValueError(f"the plan's lists do not fit: {found}; plan again.")
